#!/bin/sh
# runc for a node whose cgroup v2 has not every controller (those that the machine uses as v1 stay
# there): limits that nothing could carry are taken out of a container before it is made.
#
# Next to us: limits.py.
bundle= verb= previous=
for word; do
    case $previous in --bundle | -b) bundle=$word ;; esac
    case $word in create | run | update) [ -n "$verb" ] || verb=$word ;; esac
    previous=$word
done
[ "$verb" = update ] && exit 0
if [ -n "$bundle" ]; then
    python3 -IS "${0%/*}/limits.py" "$bundle/config.json" || exit 1
fi
exec runc "$@"
