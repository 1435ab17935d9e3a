# Removes everything that one lab has made, once the lab's owner is gone: its end of our standard
# input closes when it lets the lab go, panics, is interrupted, or is killed. Run again it does no
# harm. Our standard output is the lab's lock, held until the last step.
#
# Arguments: the lab's number, its folder, its cgroup, its lock file.
set -u
trap '' HUP INT QUIT TERM PIPE
id=$1 run=$2 cgroup=$3 lock=$4
read -r _

populated() { grep -q '^populated 1' "$cgroup/cgroup.events" 2>/dev/null; }
tries=0
while populated && [ "$tries" -lt 100 ]; do
    # cgroup.kill is there since Linux 5.14.
    echo 1 2>/dev/null >"$cgroup/cgroup.kill" ||
        find "$cgroup" -name cgroup.procs -exec cat {} + | xargs -r kill -9 2>/dev/null
    tries=$((tries + 1))
    sleep 0.05
done

# Deepest first: file systems of BPF pins below the lab's own.
grep -F " $run" /proc/self/mounts | cut -d' ' -f2 | sort -r | while read -r mounted; do
    case $mounted in "$run" | "$run"/*) umount -l "$mounted" ;; esac
done

for namespace in /run/netns/malha-"$id"-*; do
    [ -e "$namespace" ] && ip netns del "${namespace##*/}"
done

tries=0
while [ -d "$cgroup" ] && [ "$tries" -lt 100 ]; do
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
    tries=$((tries + 1))
    [ -d "$cgroup" ] && sleep 0.05
done

rmdir "$run" 2>/dev/null
rm -f "$lock"
rmdir "${run%/*}" 2>/dev/null
exit 0
