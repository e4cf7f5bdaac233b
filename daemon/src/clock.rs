//! This node's clock for the protocol core: microseconds of CLOCK_BOOTTIME. The clock goes on while the host is
//! suspended, so a permission from before a suspend is over after it.

use crate::role::Micros;
use ft_netbuf::BootTime;

/// Now.
pub fn now_us() -> Micros {
    BootTime::now().as_us()
}
