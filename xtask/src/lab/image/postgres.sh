# The part of the official image's entrypoint that the lab plays: an empty cluster on the first
# start, the password of POSTGRES_PASSWORD for user postgres, TLS files where Debian has them.
set -eu
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
data=/var/lib/postgresql/data
owner="--reuid=65534 --regid=65534 --clear-groups"
mkdir -p "$data" /etc/ssl/certs /etc/ssl/private
chmod 700 "$data"
umask 077
printf %s "${POSTGRES_PASSWORD:?is not set}" >"$data.password"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost \
    -keyout /etc/ssl/private/ssl-cert-snakeoil.key -out /etc/ssl/certs/ssl-cert-snakeoil.pem
umask 022
# It may have been there before, with the package's own mode.
chmod 600 /etc/ssl/private/ssl-cert-snakeoil.key
chmod 711 /etc/ssl/private
chown 65534:65534 "$data" "$data.password" /etc/ssl/*/ssl-cert-snakeoil.*
setpriv $owner "$bin/initdb" -D "$data" --username=postgres --pwfile="$data.password" \
    --auth=scram-sha-256 --locale=C.UTF-8 --no-sync --no-instructions
echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
[ "$1" != postgres ] || shift
exec setpriv $owner "$bin/postgres" -D "$data" -c listen_addresses=* \
    -c unix_socket_directories="$data" "$@"
