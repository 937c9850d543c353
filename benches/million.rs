//! How much time and memory it takes to open a large index: `cargo bench --bench million -- [FILES]`.
//!
//! Creates a library of FILES files (default: a million) of 100 bytes in folders of 100, then opens it in a fresh
//! process, so that only the memory of the open library is measured.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hushfs::crypto::MasterKey;
use hushfs::object::ObjectId;
use hushfs::store::{Access, DirStore};
use hushfs::vault::{Options, Vault};
use hushfs::volume::{Caller, FileKind, ROOT, Volume};

const DEVICE: ObjectId = ObjectId([1; 16]);
const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};

fn open(library: &Path, code: &str) -> hushfs::Result<Arc<Vault>> {
    let store = Arc::new(DirStore::open(library, Access::Write(DEVICE))?);
    let options = Options {
        read_only: false,
        cache_bytes: 0,
        accept_rollback: false,
        published_only: false,
        uid: 0,
        gid: 0,
    };
    Vault::open(
        store,
        MasterKey::from_recovery_code(code)?,
        DEVICE,
        None,
        &options,
    )
}

fn fill(vault: &Vault, files: u64) -> hushfs::Result<()> {
    let mut dir = ROOT;
    for i in 0..files {
        if i % 100 == 0 {
            let name = format!("folder-{:06}", i / 100);
            dir = vault.mkdir(ROOT, OsStr::new(&name), 0o755, CALLER)?.ino;
        }
        let name = format!("{:02} - A Track With A Name.flac", i % 100);
        let attr = vault.mknod(dir, OsStr::new(&name), FileKind::Regular, 0o644, 0, CALLER)?;
        let handle = vault.open(attr.ino, libc::O_RDWR)?;
        vault.write(attr.ino, handle, 0, &[i as u8; 100])?;
        vault.flush(attr.ino, handle)?;
        vault.release(attr.ino, handle);
        vault.forget(attr.ino, 1);
    }
    Ok(())
}

/// Returns the value of a line of `/proc/self/status`, in MiB.
fn memory_mib(what: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(what));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    if let [library, code] = &args[..] {
        let before = memory_mib("VmRSS:");
        let start = Instant::now();
        let vault = open(Path::new(library), code)?;
        let seconds = start.elapsed().as_secs_f64();
        let inodes = vault.statfs()?.files;
        println!(
            "open: {seconds:.2} s, memory {:.0} MiB (peak {:.0}, {before:.0} before), {inodes} inodes",
            memory_mib("VmRSS:"),
            memory_mib("VmHWM:"),
        );
        return Ok(());
    }
    let files = args.first().map_or(Ok(1_000_000), |n| n.parse())?;
    let library = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or("/var/tmp".into()))?;
    let code = MasterKey::generate()?.recovery_code().to_string();
    let start = Instant::now();
    let vault = open(library.path(), &code)?;
    fill(&vault, files)?;
    vault.close()?;
    drop(vault);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "made {files} files in {seconds:.1} s ({:.0} a second)",
        files as f64 / seconds
    );
    let status = std::process::Command::new(std::env::current_exe()?)
        .arg(library.path())
        .arg(&code)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err("the library does not open".into())
    }
}
