//! The file arbiter on storage that is full, or cannot be written.

use ft_arbiter::{Arbiter, Cell, CellId, FileArbiter, Outcome, Trouble};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::Path;

fn cell(generation: u64, owner: &str) -> Cell {
    Cell { id: CellId(0xce11), generation, owner: Some(owner.to_owned()), standby: None }
}

fn win(arbiter: &mut FileArbiter, expected: Option<u64>, new: Cell) {
    assert_eq!(arbiter.compare_and_set(expected, new.clone()), Outcome::Won(new));
}

/// Runs a test on a tiny tmpfs that only its thread sees.
fn on_tiny_storage(test_name: &str, test: impl FnOnce(&Path, &dyn Fn(MsFlags)) + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| format!("unshare(CLONE_NEWNS): {errno}"))?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(|errno| errno.to_string())?;
        let directory = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k"))
            .map_err(|errno| format!("mounting tmpfs: {errno}"))?;
        let remount = |flags| {
            mount(none, directory.path(), none, MsFlags::MS_REMOUNT | flags, Some("size=64k")).unwrap();
        };
        test(directory.path(), &remount);
        nix::mount::umount(directory.path()).map_err(|errno| errno.to_string())
    };
    match std::thread::spawn(run).join() {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => eprintln!("SKIPPED {test_name}: {reason}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[test]
fn full_storage_changes_nothing_and_is_said_for_certain() {
    on_tiny_storage("full_storage_changes_nothing_and_is_said_for_certain", |storage, _| {
        let mut arbiter = FileArbiter::new(&storage.join("web.cell"), "web");
        win(&mut arbiter, None, cell(1, "alpha"));
        let filler = storage.join("filler");
        let _ = fs::write(&filler, vec![1; 1 << 20]);
        let outcome = arbiter.compare_and_set(Some(1), cell(2, "alpha"));
        assert!(
            matches!(&outcome, Outcome::NotAttempted(error)
                if matches!(error.trouble, Trouble::Storage { errno: Errno::ENOSPC, .. })),
            "{outcome:?}"
        );
        assert!(arbiter.probe().is_err());
        assert_eq!(arbiter.read().unwrap(), Some(cell(1, "alpha")));
        fs::remove_file(filler).unwrap();
        win(&mut arbiter, Some(1), cell(2, "alpha"));
    });
}

#[test]
fn read_only_storage_is_said_for_certain() {
    on_tiny_storage("read_only_storage_is_said_for_certain", |storage, remount| {
        let mut arbiter = FileArbiter::new(&storage.join("web.cell"), "web");
        remount(MsFlags::MS_RDONLY);
        assert!(matches!(arbiter.compare_and_set(None, cell(1, "alpha")), Outcome::NotAttempted(_)));
        assert!(arbiter.probe().is_err());
        remount(MsFlags::empty());
        win(&mut arbiter, None, cell(1, "alpha"));
        remount(MsFlags::MS_RDONLY);
        assert!(matches!(arbiter.compare_and_set(Some(1), cell(2, "alpha")), Outcome::NotAttempted(_)));
        assert_eq!(arbiter.read().unwrap(), Some(cell(1, "alpha")));
    });
}
