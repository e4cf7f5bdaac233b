//! This node's clock as the protocol core counts it: microseconds of CLOCK_BOOTTIME. Leases and promises are counted on
//! it, and it goes on while the host is suspended: a permission from before a suspend is over after it.

use crate::role::Micros;
use ft_netbuf::BootTime;

/// Now.
pub fn now_us() -> Micros {
    BootTime::now().as_us()
}
