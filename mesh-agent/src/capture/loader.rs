//! Loads the kernel programs, pins their maps, and attaches them or updates them in place.
//!
//! One owner per attachment: a link that is pinned gets the new program (`BPF_LINK_UPDATE`), so
//! that no packet sees two agents' programs or none. aya has no call for that on these program
//! types, hence the system calls. The invariant: after `load`, every link pinned here runs a
//! program of this agent.
#![allow(unsafe_code, reason = "bpf(2) for what aya does not offer")]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, Program, ProgramError, ProgramFd};
use aya::{Ebpf, EbpfLoader};
use mesh_common::maps;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chroot;

use super::pins::Pins;
use super::{CaptureError, CaptureOptions, MapSizes};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf"));

/// Programs attached to the cgroup, by the names of their functions.
const CGROUP_PROGRAMS: [&str; 7] = [
    "tcp_callback",
    "getpeername4",
    "getpeername6",
    "getsockname4",
    "getsockname6",
    "connect4",
    "connect6",
];
/// The one by which an agent is known to be in charge: attached last.
const LAST_PROGRAM: &str = "connect6";
/// Program attached to the kubelet's cgroup.
pub(super) const PROBE_PROGRAM: &str = "probe_callback";
/// Program attached to each pod's network namespace.
pub(super) const INBOUND_PROGRAM: &str = "steer_inbound";

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Loads all programs and maps; nothing runs yet.
pub(super) fn load(options: &CaptureOptions, pins: &Pins) -> Result<Ebpf, CaptureError> {
    let mut loader = loader(&pins.shared());
    for (name, entries) in sizes(&options.sizes) {
        loader.map_max_entries(name, entries);
    }
    for name in maps::FROZEN {
        loader.map_pin_path(name, pins.shared().join(name));
    }
    for name in maps::VERSIONED {
        loader.map_pin_path(name, pins.versioned().join(name));
    }
    let mut ebpf = loader.load(OBJECT)?;
    check_layouts(pins)?;

    load_programs(&mut ebpf)?;
    Ok(ebpf)
}

/// At the same time, on as many cores as there are: no part of an agent's start takes longer than the
/// kernel's verifier.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    std::thread::scope(|scope| {
        let programs = ebpf.programs_mut();
        let loading: Vec<_> =
            programs.map(|(_, one)| scope.spawn(move || load_program(one))).collect();
        loading.into_iter().try_for_each(|one| {
            // It has not panicked: it only calls the kernel.
            one.join().unwrap_or(Err(CaptureError::Program(ProgramError::NotLoaded)))
        })
    })
}

/// Attaches what belongs to the cgroup, or puts it into the links that are there.
///
/// `connect` comes last: what it redirects must find the other programs in place.
pub(super) fn attach(ebpf: &mut Ebpf, cgroup: &Path, pins: &Pins) -> Result<(), CaptureError> {
    let cgroup = fs::File::open(cgroup).map_err(CaptureError::file("open cgroup", cgroup))?;
    CGROUP_PROGRAMS
        .iter()
        .try_for_each(|name| attach_to_cgroup(ebpf, name, &cgroup, &pins.link(name)))
}

/// A loader without the kernel's types (BTF): they serve relocations, and our programs have none.
///
/// aya's one constructor reads and parses them, if it finds them, which takes 25 ms at every start of
/// an agent and leaves 8 MB of heap behind. So it runs where it does not: on a thread of its own whose
/// root is a folder of pins.
fn loader(root: &Path) -> EbpfLoader<'static> {
    let make = || {
        if let Err(error) = unshare(CloneFlags::CLONE_FS).and_then(|()| chroot(root)) {
            tracing::debug!(%error, "the kernel's types are loaded in vain");
        }
        EbpfLoader::new()
    };
    let made = std::thread::scope(|scope| scope.spawn(make).join());
    made.unwrap_or_else(|_| EbpfLoader::new())
}

fn sizes(sizes: &MapSizes) -> [(&'static str, u32); 8] {
    [
        (maps::PODS, sizes.pods),
        (maps::PENDING, sizes.pods),
        (maps::INBOUND, sizes.pods.saturating_mul(2)),
        (maps::LISTENERS, sizes.pods.saturating_mul(4)),
        (maps::TUPLES, sizes.pending_connections),
        (maps::ADMITTED, sizes.admitted_connections),
        (maps::EXCLUDED_PORTS, sizes.exclusions),
        (maps::EXCLUDED_RANGES, sizes.exclusions),
    ]
}

/// Key and value sizes; aya takes a pinned map as it is.
fn check_layouts(pins: &Pins) -> Result<(), CaptureError> {
    use mesh_common::address::Ip;
    use std::mem::size_of;
    let shared = pins.shared();
    for (name, key, value) in [
        (maps::PODS, 8, size_of::<maps::Pod>()),
        (maps::ORIGINS, 4, size_of::<maps::OriginalDestination>()),
        (maps::MARKS, 4, size_of::<maps::Mark>()),
        (maps::TUPLES, size_of::<maps::TupleKey>(), size_of::<maps::OriginalDestination>()),
        (maps::PENDING, 8, 8),
        (maps::ADMITTED, size_of::<maps::AdmitKey>(), 1),
        (maps::INBOUND, size_of::<Ip>(), size_of::<maps::Inbound>()),
        (maps::EXCLUDED_PORTS, size_of::<maps::PortKey>(), 1),
        (maps::EXCLUDED_RANGES, 4 + size_of::<maps::RangeData>(), 1),
    ] {
        let path = shared.join(name);
        let info = MapInfo::from_pin(&path).map_err(CaptureError::map(name))?;
        if info.key_size() as usize != key || info.value_size() as usize != value {
            return Err(CaptureError::Layout { path });
        }
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, CaptureError> {
    // The object is ours, so a missing program is a fault of the build.
    ebpf.program_mut(name).ok_or(CaptureError::Program(ProgramError::NotLoaded))
}

fn load_program(program: &mut Program) -> Result<(), CaptureError> {
    match program {
        Program::CgroupSockAddr(program) => program.load()?,
        Program::SockOps(program) => program.load()?,
        Program::SkLookup(program) => program.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType.into()),
    }
    Ok(())
}

fn attach_to_cgroup(
    ebpf: &mut Ebpf,
    name: &str,
    cgroup: &fs::File,
    pin: &Path,
) -> Result<(), CaptureError> {
    let program = program(ebpf, name)?;
    if update(pin, program.fd()?)? {
        return Ok(());
    }
    // Single is the mode without flags, the only one that links take; others may attach as well.
    let link: Result<FdLink, LinkError> = match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, CgroupAttachMode::Single)?;
            program.take_link(id)?.try_into()
        }
        Program::SockOps(program) => {
            let id = program.attach(cgroup, CgroupAttachMode::Single)?;
            program.take_link(id)?.try_into()
        }
        _ => return Err(ProgramError::UnexpectedProgramType.into()),
    };
    pin_link(link.map_err(|_| ProgramError::UnexpectedProgramType)?, pin)
}

/// Attaches the program for probes to the kubelet's cgroup, and nowhere else; does nothing where it is.
pub(super) fn attach_probes(
    ebpf: &mut Ebpf,
    cgroup: &Path,
    pin: &Path,
) -> Result<(), CaptureError> {
    let folder = fs::File::open(cgroup).map_err(CaptureError::file("open cgroup", cgroup))?;
    let metadata = folder.metadata().map_err(CaptureError::file("read", cgroup))?;
    let Program::SockOps(own) = program(ebpf, PROBE_PROGRAM)? else {
        return Err(ProgramError::UnexpectedProgramType.into());
    };
    let own = own.info()?.id();
    match link_info(pin)? {
        Some(info) if info.cgroup() == metadata.ino() && info.program == own => return Ok(()),
        Some(info) if info.cgroup() != metadata.ino() => detach(pin)?,
        _ => {}
    }
    attach_to_cgroup(ebpf, PROBE_PROGRAM, &folder, pin)
}

/// Attaches the inbound program to a pod's network namespace, or updates its link.
pub(super) fn attach_inbound(
    ebpf: &mut Ebpf,
    netns: &fs::File,
    pin: &Path,
) -> Result<(), CaptureError> {
    let Program::SkLookup(program) = program(ebpf, INBOUND_PROGRAM)? else {
        return Err(ProgramError::UnexpectedProgramType.into());
    };
    if update(pin, program.fd()?)? {
        return Ok(());
    }
    let id = program.attach(netns)?;
    pin_link(program.take_link(id)?.into(), pin)
}

/// Updates a pod's link. `false` if its network namespace is gone; the pin is then removed.
pub(super) fn update_inbound(ebpf: &mut Ebpf, pin: &Path) -> Result<bool, CaptureError> {
    let program = program(ebpf, INBOUND_PROGRAM)?.fd()?.try_clone().map_err(|source| {
        CaptureError::File { action: "keep program of", path: pin.to_owned(), source }
    })?;
    update(pin, &program)
}

/// Whether a pod's network namespace is still there, whosever program its link runs.
pub(super) fn is_attached(pin: &Path) -> Result<bool, CaptureError> {
    Ok(link_info(pin)?.is_some_and(|info| info.netns_inode != 0))
}

/// The kernel's number for the program by which an agent is known.
pub(super) fn own_program(ebpf: &Ebpf) -> Result<u32, CaptureError> {
    let program = ebpf.program(LAST_PROGRAM).ok_or(ProgramError::NotLoaded)?;
    Ok(program.info()?.id())
}

/// The same of the agent in charge, if there is any.
pub(super) fn program_in_charge(pins: &Pins) -> Result<Option<u32>, CaptureError> {
    Ok(link_info(&pins.link(LAST_PROGRAM))?.map(|info| info.program))
}

fn pin_link(link: FdLink, pin: &Path) -> Result<(), CaptureError> {
    link.pin(pin).map_err(|error| CaptureError::file("pin", pin)(io::Error::other(error)))?;
    Ok(())
}

/// Puts a program into a pinned link. `false` if there is none, or if what it was attached to is
/// gone ("Link has been severed"); the pin is then removed.
fn update(pin: &Path, program: &ProgramFd) -> Result<bool, CaptureError> {
    let Some(link) = pinned(pin)? else { return Ok(false) };
    match update_link(link.as_fd(), program.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            fs::remove_file(pin).map_err(CaptureError::file("remove", pin))?;
            Ok(false)
        }
        Err(error) => Err(CaptureError::file("update", pin)(error)),
    }
}

/// Detaches and unpins a link, at once; it is no error if it is absent.
pub(super) fn detach(pin: &Path) -> Result<(), CaptureError> {
    let Some(link) = pinned(pin)? else { return Ok(()) };
    // Removing the pin alone would detach some time later: the kernel frees links in a worker.
    if let Err(error) = detach_link(link.as_fd())
        && error.raw_os_error() != Some(libc::ENOLINK)
    {
        return Err(CaptureError::file("detach", pin)(error));
    }
    fs::remove_file(pin).map_err(CaptureError::file("remove", pin))
}

fn link_info(pin: &Path) -> Result<Option<LinkInfo>, CaptureError> {
    let Some(link) = pinned(pin)? else { return Ok(None) };
    info(link.as_fd()).map(Some).map_err(CaptureError::file("read", pin))
}

/// A pinned link, if there is one.
fn pinned(pin: &Path) -> Result<Option<OwnedFd>, CaptureError> {
    match object(pin) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CaptureError::file("open", pin)(error)),
    }
}

/// `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_LINK_UPDATE`; `BPF_LINK_DETACH` reads the first field.
#[repr(C)]
struct LinkAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    object: u32,
    length: u32,
    info: u64,
}

/// Beginning of `struct bpf_link_info`; the last two fields are those of a network namespace's link. A
/// cgroup's has a number of 64 bits there.
#[derive(Default)]
#[repr(C)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    /// 0 once the namespace is gone.
    netns_inode: u32,
    attach_type: u32,
}

impl LinkInfo {
    /// Number of the cgroup of a link at one, which is the inode of its folder; 0 once it is gone.
    fn cgroup(&self) -> u64 {
        u64::from(self.netns_inode) | u64::from(self.attach_type) << 32
    }
}

fn object(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the attribute is live and as long as said; `path` outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<ObjectAttr>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let attr = InfoAttr {
        object: link.as_raw_fd() as u32,
        length: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attribute is live and as long as said; `info` outlives the call, which writes at
    // most `length` octets of plain numbers into it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attr, size_of::<InfoAttr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(info) }
}

fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    link_call(BPF_LINK_UPDATE, link, program.as_raw_fd() as u32)
}

fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    link_call(BPF_LINK_DETACH, link, 0)
}

fn link_call(command: libc::c_long, link: BorrowedFd<'_>, program: u32) -> io::Result<()> {
    let attr = LinkAttr { link: link.as_raw_fd() as u32, program, flags: 0, old_program: 0 };
    // SAFETY: the attribute is live and as long as said; it holds no pointers.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<LinkAttr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
