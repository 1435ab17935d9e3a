"""Takes out of a container's config.json (OCI runtime specification) what this node cannot give."""

import json
import sys

# Controller of cgroup v2: the parts of linux.resources that need it.
NEEDS = {
    "cpu": [("cpu", "shares"), ("cpu", "quota"), ("cpu", "period")],
    "cpuset": [("cpu", "cpus"), ("cpu", "mems")],
    "memory": [("memory",)],
    "pids": [("pids",)],
    "io": [("blockIO",)],
    "hugetlb": [("hugepageLimits",)],
}
CAP_SYS_RESOURCE = 24  # include/uapi/linux/capability.h


def read(path):
    with open(path) as file:
        return file.read()


def without_limits(resources):
    controllers = read("/sys/fs/cgroup/cgroup.controllers").split()
    resources.pop("unified", None)
    for controller, parts in NEEDS.items():
        for part in parts if controller not in controllers else []:
            place = resources
            for name in part[:-1]:
                place = place.get(name) or {}
            place.pop(part[-1], None)


def without_sys_resource(process):
    bounding = [line for line in read("/proc/self/status").splitlines() if "CapBnd" in line]
    if int(bounding[0].split()[1], 16) >> CAP_SYS_RESOURCE & 1:
        return
    # Neither given to others nor used to lower the score.
    if process.get("oomScoreAdj", 0) < 0:
        del process["oomScoreAdj"]
    for names in process.get("capabilities", {}).values():
        if "CAP_SYS_RESOURCE" in names:
            names.remove("CAP_SYS_RESOURCE")


path = sys.argv[1]
config = json.loads(read(path))
without_limits(config.get("linux", {}).get("resources", {}))
without_sys_resource(config.get("process", {}))
with open(path, "w") as file:
    json.dump(config, file)
