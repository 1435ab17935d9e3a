# Removes everything that one lab has made, once its owner is gone: its end of our standard input
# closes when it lets the lab go, panics, is interrupted, or is killed. The word `keep` instead ends
# us and leaves the lab, for `cargo xtask lab kube down`. Run again it does no harm. Our standard
# output is the lab's lock, held until the last step.
#
# Arguments: the lab's folder, its lock file, the beginning of its network namespaces' names, its
# cgroup (empty if it has none).
set -u
trap '' HUP INT QUIT TERM PIPE
dir=$1 lock=$2 prefix=$3 cgroup=$4
read -r word && [ "$word" = keep ] && exit 0

# Process numbers are used again: every command line of the lab's names its folder.
ours() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF "$dir/"; }
alive() {
    for file in "$dir"/pids/*; do
        [ -s "$file" ] && ours "$(cat "$file")" && return
    done
    return 1
}

# At once and without asking: the data is thrown away, and the end of a node's first process is the
# end of all in its process namespace. Again for what was only just starting.
tries=0
while alive && [ "$tries" -lt 100 ]; do
    for file in "$dir"/pids/*; do
        [ -s "$file" ] || continue
        pid=$(cat "$file")
        ours "$pid" && kill -9 "$pid"
    done
    tries=$((tries + 1))
    sleep 0.05
done

for namespace in /run/netns/"$prefix"*; do
    [ -e "$namespace" ] && ip netns del "${namespace##*/}"
done

tries=0
while [ -n "$cgroup" ] && [ -d "$cgroup" ] && [ "$tries" -lt 200 ]; do
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
    tries=$((tries + 1))
    [ -d "$cgroup" ] && sleep 0.05
done
# Something of it still runs: what is needed to try again stays.
[ -n "$cgroup" ] && [ -d "$cgroup" ] && exit 1
alive && exit 1

rm -rf "$dir" || exit 1
rm -f "$lock"
rmdir "${dir%/*}" 2>/dev/null
exit 0
