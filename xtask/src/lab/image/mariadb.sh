# The part of the official image's entrypoint that the lab plays: empty system tables on the first
# start, and the password of MARIADB_ROOT_PASSWORD for user root from anywhere.
set -eu
data=/var/lib/mysql
mkdir -p "$data"
chown 65534:65534 "$data"
mariadb-install-db --no-defaults --user=nobody --datadir="$data" --skip-test-db \
    --innodb-log-file-size=8M --auth-root-authentication-method=normal >/dev/null
printf "%s\n" "CREATE USER root@'%' IDENTIFIED BY '${MARIADB_ROOT_PASSWORD:?is not set}';" \
    "GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;" >"$data/first.sql"
[ "$1" != mariadbd ] || shift
exec mariadbd --no-defaults --user=nobody --datadir="$data" --socket="$data/socket" \
    --pid-file="$data/pid" --init-file="$data/first.sql" --skip-name-resolve \
    --innodb-log-file-size=8M --innodb-buffer-pool-size=64M "$@"
