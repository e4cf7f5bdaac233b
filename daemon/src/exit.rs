//! The exit codes of the two programs: one place, used by the code, by `--help` and by the systemd units.

use std::process::ExitCode;

macro_rules! exit_codes {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $code:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name {
            $($(#[doc = $doc])+ $variant = $code,)+
        }

        impl $name {
            /// The table that `--help` ends with.
            pub const HELP: &str =
                concat!("Exit codes:", $("\n  ", stringify!($code), ":", $($doc,)+)+);
        }

        impl From<$name> for ExitCode {
            fn from(code: $name) -> Self {
                Self::from(code as u8)
            }
        }
    };
}

exit_codes! {
    /// How `ftd` ends.
    DaemonExit {
        /// ended as asked: stopped, handed over, or the check passed
        Ok = 0,
        /// failed; the last message says why
        Failure = 1,
        /// wrong usage or configuration
        Usage = 2,
        /// this host cannot run the VM: no /dev/kvm, no right to use the TAP, or a file missing or unreadable
        Host = 10,
        /// an address, TAP, lock or socket is in use: most likely another daemon for the same VM
        InUse = 11,
        /// the arbiter cannot be used; the message says why
        Arbiter = 12,
        /// the two nodes do not fit each other: another VM, version, memory size or CPU
        Peer = 13,
        /// fenced: the other replica won the arbitration and has the VM
        Fenced = 20,
        /// the guest crashed
        GuestCrashed = 21,
        /// a replay differs from its recording
        Diverged = 22,
    }
}

exit_codes! {
    /// How `ftctl` ends.
    CtlExit {
        /// done; for status: the VM is protected, and its network is well
        Ok = 0,
        /// failed; the message says why
        Failure = 1,
        /// wrong usage
        Usage = 2,
        /// status only: the VM is not protected at the moment, its network has trouble on this host, or ftd is stuck
        Degraded = 3,
        /// the daemon cannot be reached, or in TLS one of the two is not whom the other takes
        Unreachable = 4,
        /// the daemon refused
        Refused = 5,
        /// not done within the time given
        Timeout = 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_code() {
        assert!(DaemonExit::HELP.starts_with("Exit codes:\n  0: ended as asked"));
        assert!(DaemonExit::HELP.contains("\n  20: fenced"));
        assert!(CtlExit::HELP.ends_with("\n  6: not done within the time given"));
    }

    const UNIT: &str = include_str!("../../scripts/systemd/ftd.service");
    const TEMPLATE: &str = include_str!("../../scripts/systemd/ftd@.service");

    #[test]
    fn the_units_do_not_restart_what_needs_an_operator_first() {
        let codes =
            format!("RestartPreventExitStatus={} {}\n", DaemonExit::Usage as u8, DaemonExit::Fenced as u8);
        assert!(UNIT.contains(&codes) && TEMPLATE.contains(&codes), "{codes}");
    }

    #[test]
    fn the_arbiters_unit_does_not_restart_over_a_damaged_store() {
        let unit = include_str!("../../scripts/systemd/ftd-arbiter.service");
        let codes =
            format!("RestartPreventExitStatus={} {}\n", DaemonExit::Usage as u8, DaemonExit::Arbiter as u8);
        assert!(unit.contains(&codes), "{codes}");
    }

    #[test]
    fn the_unit_and_its_template_differ_in_their_configuration_only() {
        fn settings(unit: &str) -> Vec<&str> {
            unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
        }
        let named = TEMPLATE.replace("VM %i", "VM").replace("%i.toml", "ftd.toml");
        assert_eq!(settings(UNIT), settings(&named));
    }
}
