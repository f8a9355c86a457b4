//! The compiled BPF object: rebuilt, compared with its sources, and the two things that rebuilding needs provided (ADR 1).
//!
//! The object is committed beside a stamp: digests of the sources it was made from and of itself, and the compiler. A clone builds
//! without any of what is here; only who changes `ebpf/programs` or `ebpf/abi` needs it.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use clap::Args;
use sha2::{Digest as _, Sha256};

use crate::front;

/// The command that provides what rebuilding needs.
const SETUP: &str = "cargo xtask setup ebpf";
const LINKER_VERSION: &str = "0.13.0";
/// LLVM major versions that this bpf-linker can be built against.
const LINKER_LLVM: [u32; 3] = [21, 22, 23];
const OBJECT: &str = "ebpf/redirector/bpf/tropis.bpf.o";
const STAMP: &str = "ebpf/redirector/bpf/tropis.bpf.stamp";

/// Debian's `rust-src` packages by compiler version: the package's own version and its digest, as no configured index need list them.
const DEBIAN_SOURCES: [(&str, &str, &str); 1] =
    [("1.95.0", "1.95.0+dfsg1-2~bpo13+1", "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b")];

#[derive(Args)]
pub(crate) struct Options {
    /// Only compare the object with its sources; build nothing.
    #[arg(long)]
    check: bool,
    /// Rebuild although the sources did not change.
    #[arg(long)]
    force: bool,
}

/// `cargo xtask ebpf`.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if options.check {
        return check();
    }
    if !options.force && object_is_fresh(&front::root()).is_ok() {
        eprintln!("  the BPF object is fresh; --force builds it all the same");
        return Ok(());
    }
    rebuild(&front::root())
}

/// Fails when the object does not belong to the sources.
pub(crate) fn check() -> anyhow::Result<()> {
    object_is_fresh(&front::root())
}

/// Provides what rebuilding needs, and says what it cannot.
pub(crate) fn setup() -> anyhow::Result<()> {
    let root = front::root();
    let compiler = Compiler::ask(&root)?;
    front::step(&format!("sources of the standard library of rustc {}", compiler.release), || provide_sources(&root, &compiler))?;
    front::step(&format!("bpf-linker {LINKER_VERSION} for LLVM {}", compiler.llvm), || provide_linker(&root, &compiler))
}

/// Fails when the object was not made from the sources that are here, or is not the one that was made then.
pub(crate) fn object_is_fresh(root: &Path) -> anyhow::Result<()> {
    let stamp = fs::read_to_string(root.join(STAMP)).with_context(|| format!("{STAMP} is missing: run `cargo xtask ebpf`"))?;
    let field = |name: &str| stamp.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    let sources = digest_of_sources(root)?;
    if field("sources ") != sources {
        bail!("{OBJECT} is stale: ebpf/programs or ebpf/abi changed since it was built; run `cargo xtask ebpf` (once before: `{SETUP}`)");
    }
    let object = fs::read(root.join(OBJECT)).with_context(|| format!("{OBJECT} is missing: run `cargo xtask ebpf`"))?;
    if field("object ") != hex(&Sha256::digest(&object)) {
        bail!("{OBJECT} is not the file that its stamp was written for: run `cargo xtask ebpf --force`");
    }
    Ok(())
}

/// Compiles the programs with the compiler that is here, and replaces object and stamp.
pub(crate) fn rebuild(root: &Path) -> anyhow::Result<()> {
    let compiler = Compiler::ask(root)?;
    if !compiler.sources().is_file() {
        bail!("the sources of the standard library of rustc {} are missing: run `{SETUP}`", compiler.release);
    }
    let linker = linker(root).with_context(|| format!("bpf-linker is missing: run `{SETUP}`"))?;
    let target = root.join("target/ebpf/programs");
    // Unpacked before the build: what their folder is called is part of the flags.
    front::step("fetch the crates", || front::run(clean_cargo(&root.join("ebpf/programs")).args(["fetch", "--locked"])))?;
    front::step("build the BPF programs", || {
        let path = std::env::var("PATH").unwrap_or_default();
        let folder = linker.parent().unwrap_or(root).display();
        let mut cargo = clean_cargo(&root.join("ebpf/programs"));
        cargo
            .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "-Z", "build-std=core"])
            // The stable compiler, with leave to use what only building `core` needs.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("PATH", format!("{folder}:{path}"))
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(root, &compiler).join("\x1f"));
        front::run(&mut cargo)
    })?;
    let built = target.join("bpfel-unknown-none/release/tropis-bpf");
    let object = fs::read(&built).with_context(|| format!("{} was not built", built.display()))?;
    let mut stamp = String::new();
    writeln!(stamp, "sources {}", digest_of_sources(root)?)?;
    writeln!(stamp, "object {}", hex(&Sha256::digest(&object)))?;
    writeln!(stamp, "compiler {}", compiler.version)?;
    writeln!(stamp, "linker bpf-linker {LINKER_VERSION}")?;
    fs::create_dir_all(root.join(OBJECT).parent().unwrap_or(root))?;
    fs::write(root.join(OBJECT), &object)?;
    fs::write(root.join(STAMP), stamp)?;
    eprintln!("  {OBJECT}: {} KiB", object.len() / 1024);
    Ok(())
}

/// BTF describes the maps to the loader; the folders of this machine stay out of the object.
fn flags(root: &Path, compiler: &Compiler) -> Vec<String> {
    let sources = fs::canonicalize(compiler.source_folder()).unwrap_or_else(|_| compiler.source_folder());
    let home = std::env::var("CARGO_HOME").unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").unwrap_or_default()));
    let mut flags = vec![
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={home}=cargo"),
        format!("--remap-path-prefix={}=rust", compiler.sysroot.display()),
        format!("--remap-path-prefix={}=tropis", root.display()),
        // The last one that fits counts: the same object, wherever the sources were linked from.
        format!("--remap-path-prefix={}=rust/lib/rustlib/src/rust", sources.display()),
    ];
    flags.extend(registries(Path::new(&home)).iter().map(|folder| format!("--remap-path-prefix={}=crates", folder.display())));
    flags
}

/// The folders that crates are unpacked to: one for each registry or mirror, with a name that only this machine's settings explain.
fn registries(cargo_home: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(cargo_home.join("registry/src")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

/// The compiler that `cargo` uses here.
struct Compiler {
    /// What `rustc --version` says.
    version: String,
    /// `1.95.0`.
    release: String,
    /// The major version of its LLVM.
    llvm: u32,
    sysroot: PathBuf,
}

impl Compiler {
    fn ask(root: &Path) -> anyhow::Result<Self> {
        let rustc = || {
            let mut command = Command::new("rustc");
            command.current_dir(root);
            command
        };
        let verbose = front::output(rustc().arg("-vV"))?;
        let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        let llvm = field("LLVM version:").split('.').next().and_then(|major| major.parse().ok());
        Ok(Self {
            version: verbose.lines().next().unwrap_or_default().to_owned(),
            release: field("release:"),
            llvm: llvm.context("`rustc -vV` names no LLVM version")?,
            sysroot: front::output(rustc().args(["--print", "sysroot"]))?.trim().into(),
        })
    }

    /// A file that is there when the sources of the standard library are.
    fn sources(&self) -> PathBuf {
        self.source_folder().join("library/core/src/lib.rs")
    }

    fn source_folder(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }
}

fn provide_sources(root: &Path, compiler: &Compiler) -> anyhow::Result<()> {
    if compiler.sources().is_file() {
        return Ok(());
    }
    let by_rustup = Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(root).output();
    if by_rustup.is_ok_and(|output| output.status.success()) && compiler.sources().is_file() {
        return Ok(());
    }
    eprintln!("  rustup provides no rust-src here; trying the distribution's package");
    let folder = root.join("target/ebpf").join(format!("rust-src-{}", compiler.release));
    if !folder.join("library/core/src/lib.rs").is_file() {
        unpack_debian_sources(&folder, compiler)
            .context("no sources of the standard library: the committed BPF object stays in use and cannot be rebuilt here")?;
    }
    let link = compiler.source_folder();
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    }
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("{} is in the way", link.display()));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(&folder, &link).with_context(|| format!("{} cannot be linked", link.display()))
}

/// Fetches Debian's `rust-src` of the compiler's version through apt's own configuration, and unpacks the library without installing.
fn unpack_debian_sources(folder: &Path, compiler: &Compiler) -> anyhow::Result<()> {
    let (_, version, digest) = DEBIAN_SOURCES
        .iter()
        .find(|(release, ..)| *release == compiler.release)
        .with_context(|| format!("no Debian package of rust-src is known for rustc {}", compiler.release))?;
    let scratch = folder.with_extension("download");
    drop(fs::remove_dir_all(&scratch));
    fs::create_dir_all(&scratch)?;
    let package = scratch.join("rust-src.deb");
    let mut last = anyhow::anyhow!("apt has no Debian archive configured");
    for site in debian_sites()? {
        let address = format!("{site}/pool/main/r/rustc/rust-src_{version}_all.deb");
        // apt's own downloader, so that its proxies and certificates are used.
        match front::output(Command::new("/usr/lib/apt/apt-helper").arg("download-file").arg(&address).arg(&package)) {
            Ok(_) => {
                let found = hex(&Sha256::digest(&fs::read(&package)?));
                if found != *digest {
                    bail!("{address} has the digest {found}, expected {digest}");
                }
                unpack(&package, &scratch, compiler)?;
                drop(fs::remove_dir_all(folder));
                fs::rename(scratch.join("usr/src").join(format!("rustc-{}", compiler.release)), folder)?;
                drop(fs::remove_dir_all(&scratch));
                return Ok(());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The Debian archives that apt is configured for.
fn debian_sites() -> anyhow::Result<Vec<String>> {
    let listed = front::output(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
    let mut sites: Vec<String> =
        listed.lines().map(|line| line.trim_end_matches('/').to_owned()).filter(|site| site.ends_with("/debian")).collect();
    sites.sort();
    sites.dedup();
    Ok(sites)
}

fn unpack(package: &Path, scratch: &Path, compiler: &Compiler) -> anyhow::Result<()> {
    let archive = scratch.join("data.tar");
    let file = fs::File::create(&archive)?;
    let status =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(file).status().context("`dpkg-deb` could not be started")?;
    if !status.success() {
        bail!("`dpkg-deb --fsys-tarfile` ended with {status}");
    }
    let library = format!("./usr/src/rustc-{}/library", compiler.release);
    front::run(Command::new("tar").arg("-C").arg(scratch).arg("-xf").arg(&archive).arg(library))
}

/// bpf-linker on the path, else the one in the target folder.
fn linker(root: &Path) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let own = root.join("target/ebpf/bin");
    std::iter::once(own)
        .chain(path.split(':').map(PathBuf::from))
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| Command::new(file).arg("--version").output().is_ok_and(|output| output.status.success()))
}

/// Builds bpf-linker into the target folder, linked against the LLVM that the compiler itself uses: it must read what that writes.
fn provide_linker(root: &Path, compiler: &Compiler) -> anyhow::Result<()> {
    if linker(root).is_some() {
        return Ok(());
    }
    if !LINKER_LLVM.contains(&compiler.llvm) {
        bail!("bpf-linker {LINKER_VERSION} knows LLVM {LINKER_LLVM:?}, but rustc {} has LLVM {}", compiler.release, compiler.llvm);
    }
    let folder = root.join("target/ebpf");
    let library = shared_llvm(&compiler.sysroot.join("lib"))?;
    // The linker looks for libLLVM.so, the program later for the name that the library calls itself.
    let lib = folder.join("lib");
    fs::create_dir_all(&lib)?;
    let own_name = library.file_name().context("a library has a name")?;
    for name in ["libLLVM.so".as_ref(), own_name] {
        drop(fs::remove_file(lib.join(name)));
        std::os::unix::fs::symlink(&library, lib.join(name))?;
    }
    let mut cargo = clean_cargo(root);
    cargo
        .args(["install", &format!("bpf-linker@{LINKER_VERSION}"), "--locked", "--no-default-features", "--force"])
        .args(["--features", &format!("llvm-{}", compiler.llvm)])
        .arg("--root")
        .arg(&folder)
        .arg("--target-dir")
        .arg(folder.join("linker"))
        .env("LLVM_PREFIX", &folder);
    front::run(&mut cargo)
}

/// The LLVM library of a toolchain: the file itself, not a link or linker script to it.
fn shared_llvm(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libLLVM")) {
            found.push((fs::metadata(&path)?.len(), path));
        }
    }
    let (_, library) =
        found.into_iter().max().with_context(|| format!("no libLLVM in {}: this compiler is linked statically", folder.display()))?;
    Ok(library)
}

/// Cargo for another workspace: what the cargo that runs us passed on about this one is taken out.
fn clean_cargo(folder: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(folder);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let kept = ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_HTTP_CAINFO"].contains(&&*text)
            || text.starts_with("CARGO_REGISTR")
            || text.starts_with("CARGO_SOURCE");
        if (text.starts_with("CARGO") && !kept) || text == "RUSTFLAGS" || text == "RUSTC" {
            command.env_remove(&name);
        }
    }
    command
}

/// One digest of everything that decides what the object is: names and contents, in order of the names.
fn digest_of_sources(root: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    for folder in ["ebpf/programs/src", "ebpf/abi/src"] {
        collect(&root.join(folder), &mut files)?;
    }
    files.extend(["ebpf/programs/Cargo.toml", "ebpf/programs/Cargo.lock", "ebpf/abi/Cargo.toml"].map(|file| root.join(file)));
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        let content = fs::read(&file).with_context(|| format!("{name} cannot be read"))?;
        digest.update(name.as_bytes());
        digest.update([0]);
        digest.update((content.len() as u64).to_le_bytes());
        digest.update(&content);
    }
    Ok(hex(&digest.finalize()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(source: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("ebpf/programs/src/main.rs", source),
            ("ebpf/programs/Cargo.toml", ""),
            ("ebpf/programs/Cargo.lock", ""),
            ("ebpf/abi/src/lib.rs", ""),
            ("ebpf/abi/Cargo.toml", ""),
            (OBJECT, "object"),
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn write_stamp(root: &Path) {
        let stamp = format!("sources {}\nobject {}\n", digest_of_sources(root).unwrap(), hex(&Sha256::digest(b"object")));
        fs::write(root.join(STAMP), stamp).unwrap();
    }

    #[test]
    fn a_changed_source_makes_the_object_stale() {
        let repository = repository("one");
        assert!(object_is_fresh(repository.path()).is_err(), "without a stamp");
        write_stamp(repository.path());
        object_is_fresh(repository.path()).unwrap();
        fs::write(repository.path().join("ebpf/programs/src/main.rs"), "two").unwrap();
        assert!(object_is_fresh(repository.path()).unwrap_err().to_string().contains("stale"));
    }

    #[test]
    fn the_committed_object_names_no_folder_of_the_machine_that_built_it() {
        let object = fs::read(front::root().join(OBJECT)).unwrap();
        let has = |text: &str| object.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(has("crates/aya-ebpf-"), "debug information names the sources of the crates");
        for folder in ["registry/src", "crates.io", "/root/", "/home/", ".cargo", ".rustup"] {
            assert!(!has(folder), "{folder}");
        }
    }

    #[test]
    fn a_changed_object_does_not_pass_for_the_built_one() {
        let repository = repository("one");
        write_stamp(repository.path());
        fs::write(repository.path().join(OBJECT), "other").unwrap();
        assert!(object_is_fresh(repository.path()).is_err());
    }
}
