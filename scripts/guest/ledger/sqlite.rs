//! SQLite's own library, linked into this program: as much of its interface as statements without parameters need.

use super::table::Database;
use super::trouble::Trouble;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;

const OPEN_READ_WRITE: c_int = 2;
const OPEN_CREATE: c_int = 4;
const OPEN_FULL_MUTEX: c_int = 0x1_0000;
/// Milliseconds that one connection waits for another one's lock.
const BUSY_MS: c_int = 60_000;

type Row = unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;

unsafe extern "C" {
    fn sqlite3_open_v2(path: *const c_char, db: *mut *mut c_void, flags: c_int, vfs: *const c_char) -> c_int;
    fn sqlite3_close(db: *mut c_void) -> c_int;
    fn sqlite3_busy_timeout(db: *mut c_void, ms: c_int) -> c_int;
    fn sqlite3_errmsg(db: *mut c_void) -> *const c_char;
    fn sqlite3_exec(
        db: *mut c_void,
        sql: *const c_char,
        row: Option<Row>,
        context: *mut c_void,
        message: *mut *mut c_char,
    ) -> c_int;
}

/// A connection to a database.
pub struct Sqlite(*mut c_void);

// SAFETY: the connection is opened with a mutex of its own (OPEN_FULL_MUTEX), so any thread may use it.
unsafe impl Send for Sqlite {}

impl Sqlite {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> Result<Self, Trouble> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| Trouble::Database(e.to_string()))?;
        let mut db = null_mut();
        let flags = OPEN_READ_WRITE | OPEN_CREATE | OPEN_FULL_MUTEX;
        // SAFETY: a string with its end, and a place for the connection; no other VFS is named.
        let result = unsafe { sqlite3_open_v2(name.as_ptr(), &raw mut db, flags, std::ptr::null()) };
        // It is to be closed also when it could not be opened; null is one that had no memory.
        let connection = Self(db);
        if result != 0 {
            return Err(connection.trouble(&format!("open {}", path.display())));
        }
        // SAFETY: an open connection.
        unsafe { sqlite3_busy_timeout(db, BUSY_MS) };
        Ok(connection)
    }

    fn trouble(&self, what: &str) -> Trouble {
        // SAFETY: a connection or null, which errmsg takes too; its text lives until the next call on the connection.
        let text = unsafe { CStr::from_ptr(sqlite3_errmsg(self.0)) };
        Trouble::Database(format!("{what}: {}", text.to_string_lossy()))
    }
}

impl Database for Sqlite {
    fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Trouble> {
        let text = CString::new(sql).map_err(|e| Trouble::Database(e.to_string()))?;
        let mut rows: Vec<Vec<String>> = Vec::new();
        let context = (&raw mut rows).cast();
        // SAFETY: an open connection, a string with its end, and what `take_row` expects as its context.
        let result = unsafe { sqlite3_exec(self.0, text.as_ptr(), Some(take_row), context, null_mut()) };
        if result == 0 {
            return Ok(rows);
        }
        let trouble = self.trouble(sql.get(..80).unwrap_or(sql));
        // A transaction that failed half-way is not left open; where there is none this is refused.
        // SAFETY: as above, with nobody who wants rows.
        unsafe { sqlite3_exec(self.0, c"ROLLBACK".as_ptr(), None, null_mut(), null_mut()) };
        Err(trouble)
    }
}

/// Appends a row to the `Vec<Vec<String>>` that is the context.
///
/// # Safety
///
/// As SQLite calls it: `count` texts, each with its end or null.
unsafe extern "C" fn take_row(
    context: *mut c_void,
    count: c_int,
    texts: *mut *mut c_char,
    _names: *mut *mut c_char,
) -> c_int {
    // SAFETY: `rows` gives a reference that nobody else uses during sqlite3_exec.
    let rows = unsafe { &mut *context.cast::<Vec<Vec<String>>>() };
    let text = |index: usize| {
        // SAFETY: there are `count` texts.
        let text = unsafe { *texts.add(index) };
        if text.is_null() {
            return String::new();
        }
        // SAFETY: one that is not null has its end.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    rows.push((0..count as usize).map(text).collect());
    0
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        // SAFETY: nobody uses the connection any more; null is taken too.
        unsafe { sqlite3_close(self.0) };
    }
}
