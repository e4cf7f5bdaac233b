//! The processor of a machine at a count, as text for an engineer.

use super::log::REGISTERS;
use std::fmt;

/// Registers between two instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Instructions executed.
    pub count: u64,
    /// As named by [`REGISTERS`].
    pub values: [u64; REGISTERS.len()],
}

/// What is shown, in lines. Selectors, bases and hashes only matter to a comparison.
const SHOWN: [&[&str]; 6] = [
    &["rip", "rsp", "rbp"],
    &["rax", "rbx", "rcx", "rdx"],
    &["rsi", "rdi", "r8", "r9"],
    &["r10", "r11", "r12", "r13"],
    &["r14", "r15", "fs base", "gs base"],
    &["cr0", "cr2", "cr3", "cr4", "efer"],
];
/// Bits of RFLAGS that have a name.
const FLAGS: [(u32, &str); 10] = [
    (0, "cf"),
    (2, "pf"),
    (4, "af"),
    (6, "zf"),
    (7, "sf"),
    (8, "tf"),
    (9, "if"),
    (10, "df"),
    (11, "of"),
    (18, "ac"),
];

impl Registers {
    /// One by its name; none has another name.
    pub fn get(&self, name: &str) -> Option<u64> {
        REGISTERS.iter().position(|known| *known == name).map(|at| self.values[at])
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |name| self.get(name).unwrap_or_default();
        let state = if value("halted") == 0 { "" } else { ", halted" };
        write!(f, "count {}, cpl {}{state}", self.count, value("cpl"))?;
        write!(f, ", virtual time {:.6} s", value("virtual time (ns)") as f64 / 1e9)?;
        let flags = value("rflags");
        for (line, names) in SHOWN.iter().enumerate() {
            f.write_str("\n")?;
            for name in *names {
                // Control registers are short.
                let digits = if name.starts_with('c') || *name == "efer" { 8 } else { 16 };
                write!(f, "  {name:>3} {:0digits$x}", value(name))?;
            }
            if line == 0 {
                write!(f, "  rflags {flags:08x}")?;
                let set = FLAGS.iter().filter(|(bit, _)| flags >> bit & 1 == 1);
                set.clone().try_for_each(|(_, name)| write!(f, " {name}"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_has_a_name_and_stands_there_with_its_value() {
        let values = std::array::from_fn(|i| 0x1000 + i as u64);
        let registers = Registers { count: 77, values };
        let text = registers.to_string();
        for name in SHOWN.concat() {
            let value = registers.get(name).unwrap_or_else(|| panic!("{name} is no register"));
            assert!(
                text.contains(&format!("{name} ")) && text.contains(&format!("{value:x}")),
                "{name}: {text}"
            );
        }
        for name in ["cpl", "halted", "virtual time (ns)", "rflags"] {
            assert!(registers.get(name).is_some(), "{name}");
        }
        assert!(text.starts_with("count 77, cpl "), "{text}");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert_eq!(registers.get("rxx"), None);
    }
}
