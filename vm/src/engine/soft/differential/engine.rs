use super::native::Native;
pub(super) type Engine = Native;
