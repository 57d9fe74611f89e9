#!/usr/bin/env bash
# Writes a dump of MLflow's database into the folder BACKUPS, and its artifacts as artifacts.tar, and then keeps the
# newest KEEP dumps. Nothing there is replaced or removed before its successor is complete.
#
# libpq's variables say which database (PGHOST, PGUSER, PGPASSWORD, PGDATABASE), ARTIFACTS where the artifacts lie; without
# it only the database is saved.
set -euo pipefail

: "${BACKUPS:?}" "${KEEP:?}"
[[ $KEEP =~ ^[1-9][0-9]*$ ]] || { echo "back_up: KEEP is $KEEP: give the number of dumps to keep, from 1 on" >&2; exit 2; }
# A dump holds everything that MLflow knows.
umask 027
mkdir -p "$BACKUPS"
cd "$BACKUPS"
rm -f -- *.part # of a run that was ended

# The names sort by time.
dump="mlflow-$(date --utc +%Y-%m-%dT%H%M%SZ).dump"
pg_dump --format=custom --file="$dump.part"
# Reads all of it once: a dump that was cut off or damaged fails here, and not on the day when it is needed.
pg_restore --file=/dev/null "$dump.part"
sync "$dump.part"
mv -- "$dump.part" "$dump"
echo "back_up: $dump, $(stat --format=%s "$dump") bytes"

# After the database, so that what a dump refers to is there. MLflow writes meanwhile: 1 says that a file changed.
if [ -n "${ARTIFACTS:-}" ]; then
    tar --create --file=artifacts.tar.part --directory="$ARTIFACTS" . || [ $? = 1 ]
    sync artifacts.tar.part
    mv -- artifacts.tar.part artifacts.tar
    echo "back_up: artifacts.tar, $(stat --format=%s artifacts.tar) bytes"
fi

dumps=(mlflow-[0-9][0-9][0-9][0-9]-*Z.dump)
for ((number = 0; number < ${#dumps[@]} - KEEP; number++)); do
    rm -- "${dumps[number]}"
    echo "back_up: ${dumps[number]} removed, as $KEEP newer ones are kept"
done
