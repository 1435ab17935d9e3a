# What the official image's entrypoint does: the server as an unprivileged user, in /data.
set -eu
mkdir -p /data
chown 65534:65534 /data
cd /data
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@" --protected-mode no
