//! The Linux guest's key-value service: one static program without dependencies, started by the guest's /init. With the
//! argument `bench` it does a fixed amount of integer work instead. On a port of its own it moves bytes, to be timed.

mod bench;
mod bulk;
#[path = "../../../vm/ram/src/layout.rs"]
#[expect(dead_code, reason = "the host uses the rest")]
mod layout;
#[path = "../../../vm/guest/src/kv/mod.rs"]
#[expect(unused_imports, reason = "the built-in guest uses the rest")]
mod protocol;
mod serve;

use protocol::Power;
use std::fs::OpenOptions;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// How often the power button is looked at.
const BUTTON_INTERVAL: Duration = Duration::from_millis(250);

fn main() {
    if std::env::args().nth(1).as_deref() == Some("bench") {
        return bench::run();
    }
    let memory_bytes = memory_bytes().unwrap_or(64 << 20);
    let listener = match TcpListener::bind(("0.0.0.0", protocol::PORT)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("ft-service: cannot listen on port {}: {error}", protocol::PORT);
            std::process::exit(1)
        }
    };
    println!("ft-service: port {}", protocol::PORT);
    match TcpListener::bind(("0.0.0.0", bulk::PORT)) {
        Ok(listener) => drop(std::thread::spawn(move || bulk::serve(&listener))),
        Err(error) => eprintln!("ft-service: cannot listen on port {}: {error}", bulk::PORT),
    }
    std::thread::spawn(watch_power_button);
    // A quarter for the store, half for the load: what is left is the kernel's.
    serve::serve(&listener, memory_bytes / 4, (memory_bytes / 2 / protocol::PAGE) as u64, stop);
}

/// Memory that programs can still have.
fn memory_bytes() -> Option<usize> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Ends the machine's run. The small kernel knows no ACPI and so no way to power off or to reset: the platform device
/// has one. A crash is the kernel's own.
fn stop(power: Power) {
    let result = match power {
        Power::Off => write_platform_register(layout::platform::POWER_OFF),
        Power::Reset => write_platform_register(layout::platform::RESET),
        Power::Hang => write_platform_register(layout::platform::WATCHDOG_MS),
        Power::Crash | Power::Panic => std::fs::write("/proc/sysrq-trigger", "c"),
    };
    if let Err(error) = result {
        eprintln!("ft-service: {power:?}: {error}");
    }
}

/// Minds the power button in the place of a kernel that knows no ACPI.
fn watch_power_button() {
    if std::path::Path::new("/sys/firmware/acpi").exists() {
        return;
    }
    let window = match platform_window() {
        Ok(window) => window,
        Err(error) => return eprintln!("ft-service: no power button: {error}"),
    };
    // SAFETY: a register inside the window that was just mapped.
    while unsafe { window.add(layout::platform::POWER_BUTTON as usize).cast::<u64>().read_volatile() } == 0 {
        std::thread::sleep(BUTTON_INTERVAL);
    }
    println!("ft-service: the power button was pressed");
    stop(Power::Off);
}

unsafe extern "C" {
    fn mmap(at: *mut u8, bytes: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
}

/// The platform device's registers.
fn platform_window() -> std::io::Result<*mut u8> {
    const PROT_READ_WRITE: i32 = 3;
    const MAP_SHARED: i32 = 1;
    let memory = OpenOptions::new().read(true).write(true).open("/dev/mem")?;
    // SAFETY: a fresh mapping of a device's registers, aliasing nothing.
    let window = unsafe {
        mmap(
            std::ptr::null_mut(),
            layout::PLATFORM_SIZE as usize,
            PROT_READ_WRITE,
            MAP_SHARED,
            memory.as_raw_fd(),
            layout::PLATFORM_BASE as i64,
        )
    };
    if window as isize == -1 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(window)
}

fn write_platform_register(register: u64) -> std::io::Result<()> {
    let window = platform_window()?;
    // SAFETY: a register inside the window that was just mapped.
    unsafe { window.add(register as usize).cast::<u64>().write_volatile(1) }
    Ok(())
}
