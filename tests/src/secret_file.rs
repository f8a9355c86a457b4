//! Files that hold a secret: readable by one user alone from their first byte on, and replaced whole.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts `content` at `path` for `owner` (user and group of that number) alone. A reader sees the old content or the new.
///
/// # Errors
/// What the file system says; the file is then as it was.
pub fn replace(path: &Path, content: &[u8], owner: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.new"));
    // What a crash left may belong to somebody else.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(content).and_then(|()| std::os::unix::fs::fchown(&file, Some(owner), Some(owner)));
    written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_secret_is_replaced_whole_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/token");
        let owner = nix::unistd::geteuid().as_raw();
        replace(&path, b"old", owner).unwrap();
        let opened = fs::File::open(&path).unwrap();
        replace(&path, b"new", owner).unwrap();
        assert_eq!(io::read_to_string(opened).unwrap(), "old", "who has it open keeps what he had");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.uid()), (0o600, owner));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing beside it");
    }
}
