//! The user that this process is. Where the host refuses something to it, the message says who it is. An operator's
//! command that speaks of a VM is done as the daemon's user: what it finds is then what the daemon will find, and what
//! it makes is the daemon's. A file that root makes for a VM is its user's, too.

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, Uid, User};
use std::error::Error;
use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// The user and the groups of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessUser {
    name: Option<String>,
    uid: Uid,
    groups: Vec<Gid>,
}

impl ProcessUser {
    /// As the kernel has them now.
    #[must_use]
    pub fn now() -> Self {
        let uid = nix::unistd::geteuid();
        let own = nix::unistd::getegid();
        let others = nix::unistd::getgroups().unwrap_or_default().into_iter().filter(|gid| *gid != own);
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
        Self { name, uid, groups: std::iter::once(own).chain(others).collect() }
    }

    /// Whether it may give a file of its own to this group.
    #[must_use]
    pub fn may_give_to(&self, group: Gid) -> bool {
        self.uid.is_root() || self.groups.contains(&group)
    }
}

impl fmt::Display for ProcessUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, uid, groups } = self;
        let named = |gid: &Gid| match Group::from_gid(*gid) {
            Ok(Some(group)) => group.name,
            _ => gid.to_string(),
        };
        let groups = groups.iter().map(named).collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => write!(f, "user '{name}' (uid {uid}, groups {groups})"),
            None => write!(f, "uid {uid} (groups {groups})"),
        }
    }
}

/// An error, and to whom the host has refused something, if that is what it is about.
#[derive(Debug)]
pub struct Explained<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        match refusal(self.0) {
            Some(io::ErrorKind::PermissionDenied) => write!(
                f,
                "; this process is {}: give it the right, as owner or by a group, on that file and on the \
                 directories above it (and on a device by DeviceAllow= of the service)",
                ProcessUser::now()
            ),
            Some(io::ErrorKind::ReadOnlyFilesystem) => write!(
                f,
                "; what the service may write to outside of /var/lib/ftd and /run/ftd is named in its \
                 ReadWritePaths= (systemctl edit)"
            ),
            _ => Ok(()),
        }
    }
}

/// What kind of error of the host's is the cause.
fn refusal(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        if let Some(errno) = error.downcast_ref::<nix::Error>() {
            return Some(io::Error::from(*errno).kind());
        }
        cause = error.source();
    }
    None
}

/// As much memory may be locked as the service may lock, where the host lets it.
fn lift_the_limit_on_locked_memory() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: reads `limit`. Where it is refused, the limit is as it was.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// Why root cannot act as the daemon's user.
#[derive(Debug, thiserror::Error)]
#[error("{} belongs to {owner}, and this process cannot become that user: {source}", path.display())]
pub struct ActError {
    path: PathBuf,
    owner: String,
    source: nix::Error,
}

/// Where root speaks of a VM, it becomes the user of its daemon, for good: the owner of the state directory, or of the
/// first directory above it that is there. None: it stays what it is.
///
/// Files that are made are this user's alone then, and as much memory may be locked as the service may lock.
pub fn act_as_owner(state_dir: &Path) -> Result<Option<ProcessUser>, ActError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let found = state_dir.ancestors().find_map(|path| fs::metadata(path).ok().map(|found| (path, found)));
    let Some((path, uid)) = found.map(|(path, found)| (path, Uid::from_raw(found.uid()))) else {
        return Ok(None);
    };
    if uid.is_root() {
        return Ok(None);
    }
    let refused = |source| ActError { path: path.to_owned(), owner: format!("uid {uid}"), source };
    let user = User::from_uid(uid).map_err(refused)?.ok_or_else(|| refused(nix::Error::ESRCH))?;
    let failed = |source| ActError { path: path.to_owned(), owner: format!("user '{}'", user.name), source };
    lift_the_limit_on_locked_memory();
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let name = CString::new(user.name.as_str()).map_err(|_| failed(nix::Error::EINVAL))?;
    nix::unistd::initgroups(&name, user.gid)
        .and_then(|()| nix::unistd::setresgid(user.gid, user.gid, user.gid))
        .and_then(|()| nix::unistd::setresuid(uid, uid, uid))
        .map_err(failed)?;
    Ok(Some(ProcessUser::now()))
}

/// Gives a file that was made in this directory to the directory's owner, where root has made it.
pub fn give_to_owner_of(directory: &Path, file: &File) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let found = fs::metadata(directory)?;
    match found.uid() {
        0 => Ok(()),
        owner => fchown(file, Some(owner), Some(found.gid())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("{}: {source}", path.display())]
        File { path: PathBuf, source: io::Error },
        #[error(transparent)]
        Arbiter(#[from] ft_arbiter::ArbiterError),
    }

    #[test]
    fn a_refusal_says_who_was_refused() {
        let failed = |kind: io::ErrorKind| Failed::File { path: "/k".into(), source: kind.into() };
        let error = failed(io::ErrorKind::PermissionDenied);
        let said = Explained(&error).to_string();
        let user = ProcessUser::now().to_string();
        assert!(said.starts_with("/k: permission denied; this process is "), "{said}");
        assert!(said.contains(&user) && said.contains("as owner or by a group"), "{said}");
        let error = failed(io::ErrorKind::NotFound);
        assert_eq!(Explained(&error).to_string(), error.to_string());
    }

    #[test]
    fn the_arbiters_refusal_says_so_too() {
        let place = ft_arbiter::Place::File("/shared/ftd/web.cell".into());
        let failed = |errno| {
            let trouble = ft_arbiter::Trouble::Storage { at: "making it", errno };
            Failed::from(ft_arbiter::ArbiterError { place: place.clone(), trouble })
        };
        let error = failed(nix::Error::EACCES);
        let said = Explained(&error).to_string();
        assert!(said.starts_with("file /shared/ftd/web.cell: making it: "), "{said}");
        assert!(said.contains("this process is "), "{said}");
        let said = Explained(&failed(nix::Error::EROFS)).to_string();
        assert!(said.contains("ReadWritePaths="), "{said}");
        let error = failed(nix::Error::EIO);
        assert_eq!(Explained(&error).to_string(), error.to_string());
    }

    #[test]
    fn a_file_that_root_makes_is_that_of_the_directorys_owner() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED a_file_that_root_makes_is_that_of_the_directorys_owner: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let ids = |file: &File| file.metadata().map(|found| (found.uid(), found.gid())).unwrap();
        let file = File::create(directory.path().join("one")).unwrap();
        give_to_owner_of(directory.path(), &file).unwrap();
        assert_eq!(ids(&file), (0, 0));
        std::os::unix::fs::chown(directory.path(), Some(71), Some(72)).unwrap();
        let file = File::create(directory.path().join("other")).unwrap();
        give_to_owner_of(directory.path(), &file).unwrap();
        assert_eq!(ids(&file), (71, 72));
    }

    #[test]
    fn root_stays_root_where_root_has_the_state() {
        let before = ProcessUser::now();
        let owner = fs::metadata("/").unwrap().uid();
        assert_eq!(owner, 0, "of the root directory");
        assert_eq!(act_as_owner(Path::new("/no-such-directory/web")).unwrap(), None);
        assert_eq!(ProcessUser::now(), before);
    }
}
