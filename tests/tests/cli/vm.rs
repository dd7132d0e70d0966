//! `pagetrace vm`, as far as it goes without starting a machine: what is refused, and what a machine that cannot start comes to.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::run::{Ran, Running, Scratch, pagetrace};

/// Runs it with a cache of its own.
fn vm(scratch: &Scratch, args: &[&str]) -> Result<Ran> {
    let mut command = pagetrace(&[&["vm"], args].concat())?;
    Running::start(command.env("PAGETRACE_CACHE", scratch.0.join("cache")))?.end()
}

/// A file that has a kernel's header and nothing else.
fn header(scratch: &Scratch) -> Result<String> {
    let mut bytes = vec![0; 1024];
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    bytes[0x236] = 1;
    bytes.splice(0x300.., *b"6.99.0-test (a@b) #1\0");
    write(&scratch.0.join("bzImage"), &bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<String> {
    fs::write(path, bytes)?;
    Ok(path.to_string_lossy().into_owned())
}

#[test]
fn wrong_arguments_are_usage_errors() -> Result<()> {
    let scratch = Scratch::new("vm-usage")?;
    let kernel = header(&scratch)?;
    let cases: [(&[&str], &str); 14] = [
        (&["--", "check", "--", "true"], "--kernel"),
        (&["--kernel", "6.12"], "check|trace|record"),
        (&["--kernel", "6.12", "--", "check"], "second `--`"),
        (&["--kernel", "6.12", "--", "probes"], "check, trace or record"),
        (&["--kernel", "6.12", "--", "check", "-p", "1", "--", "true"], "name nothing there"),
        (&["--kernel", "6.12", "--", "check", "--junit", "x", "--", "true"], "before the first"),
        (&["--kernel", "6.12", "--", "check", "--nonsense", "--", "true"], "--nonsense"),
        (&["--kernel", "6.12", "--mem", "12", "--", "check", "--", "true"], "256M"),
        (&["--kernel", "6.12", "--cpus", "0", "--", "check", "--", "true"], "1..=64"),
        (&["--kernel", "6.12", "--timeout", "0", "--", "check", "--", "true"], "timeout"),
        (&["--kernel", "/no/such/kernel", "--", "check", "--", "true"], "/no/such/kernel"),
        (&["--kernel", &kernel, "--share", "/no/such/dir", "--", "check", "--", "true"], "/no/such/dir"),
        (&["--kernel", &kernel, "--modules", "/no/such/dir", "--", "check", "--", "true"], "/no/such/dir"),
        (&["--kernel", &kernel, "--initrd", "/no/such/file", "--", "check", "--", "true"], "/no/such/file"),
    ];
    for (args, word) in cases {
        let ran = vm(&scratch, args)?.exits(2)?.silent()?;
        ensure!(ran.stderr.contains(word), "{args:?} does not say {word}: {ran:#?}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_written_is_said_before_a_machine_starts() -> Result<()> {
    let scratch = Scratch::new("vm-unwritable")?;
    let kernel = header(&scratch)?;
    for option in ["--junit", "--sarif", "--json", "--output"] {
        let args = ["--kernel", &kernel, option, "/no/such/dir/a", "--", "check", "--", "true"];
        vm(&scratch, &args)?.exits(5)?.says("/no/such/dir/a")?.silent()?;
    }
    let args = ["--kernel", &kernel, "--", "record", "-o", "/no/such/dir/a", "--", "true"];
    vm(&scratch, &args)?.exits(5)?.says("/no/such/dir/a")?.silent()?;
    let args = ["--kernel", &kernel, "--out", "/dev/null/a", "--", "check", "--", "true"];
    vm(&scratch, &args)?.exits(5)?.says("/dev/null/a")?.silent()?;
    Ok(())
}

#[test]
fn a_command_that_cannot_run_there_is_said_before_a_machine_starts() -> Result<()> {
    let scratch = Scratch::new("vm-command")?;
    let kernel = header(&scratch)?;
    let run = |command: &str| vm(&scratch, &["--kernel", &kernel, "--", "check", "--", command]);
    run("no-such-command-anywhere")?.exits(127)?.says("no-such-command-anywhere")?.silent()?;
    run("/no/such/command")?.exits(127)?.says("/no/such/command")?.silent()?;
    run("/")?.exits(126)?.says("directory")?.silent()?;
    let script = write(&scratch.0.join("script"), b"#!/no/such/interpreter\n")?;
    run(&script)?.exits(126)?.says("not executable")?.silent()?;
    let plain = write(&scratch.0.join("plain"), b"true\n")?;
    for file in [&script, &plain] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
    }
    run(&plain)?.exits(126)?.says("names its interpreter")?.silent()?;
    run(&script)?.exits(126)?.says("needs /no/such/interpreter")?.silent()?;
    // A program whose library has gone since it was linked.
    let (library, program) = (scratch.0.join("libptgone.so"), scratch.0.join("program"));
    let cc = |args: &[&str], out: &Path| -> Result<()> {
        let mut cc = Command::new("cc");
        cc.args(args).arg("-o").arg(out).current_dir(&scratch.0);
        ensure!(cc.status()?.success(), "{cc:?} failed");
        Ok(())
    };
    write(&scratch.0.join("lib.c"), b"int gone(void) { return 0; }\n")?;
    write(&scratch.0.join("main.c"), b"int gone(void);\nint main(void) { return gone(); }\n")?;
    cc(&["-shared", "-fPIC", "lib.c"], &library)?;
    cc(&["main.c", "-L.", "-lptgone"], &program)?;
    fs::remove_file(&library)?;
    run(&program.to_string_lossy())?.exits(126)?.says("needs the library libptgone.so")?.silent()?;
    Ok(())
}

#[test]
fn files_that_are_no_kernel_are_failures_of_the_machine() -> Result<()> {
    let scratch = Scratch::new("vm-kernels")?;
    let mut arm = vec![0; 64];
    arm[56..60].copy_from_slice(b"ARM\x64");
    let empty_tree = scratch.0.join("tree");
    fs::create_dir(&empty_tree)?;
    let kernels = [
        (write(&scratch.0.join("text"), b"hello")?, "no kernel"),
        (write(&scratch.0.join("vmlinux"), b"\x7fELF")?, "arch/x86/boot/bzImage"),
        (write(&scratch.0.join("Image"), &arm)?, "arm64"),
        (write(&scratch.0.join("linux.deb"), b"no package")?, "linux.deb"),
        (empty_tree.to_string_lossy().into_owned(), "holds no kernel"),
    ];
    let json = scratch.0.join("a.json").to_string_lossy().into_owned();
    for (kernel, says) in &kernels {
        let ran = vm(&scratch, &["--kernel", kernel, "--json", &json, "--", "check", "--", "true"])?;
        let ran = ran.exits(69)?.says(says)?;
        ensure!(ran.stdout.contains("NO REPORT"), "{ran:#?}");
        let told: Value = serde_json::from_str(&fs::read_to_string(&json)?)?;
        ensure!(told["schema"] == "pagetrace.vm/1" && told["runs"][0]["report"].is_null(), "{told:#}");
        ensure!(told["runs"][0]["exit_code"] == 69 && told["runs"][0]["kernel"] == kernel.as_str(), "{told:#}");
    }
    Ok(())
}

#[test]
fn without_qemu_every_column_says_so() -> Result<()> {
    let scratch = Scratch::new("vm-qemu")?;
    let kernel = header(&scratch)?;
    let path = |name: &str| scratch.0.join(name).to_string_lossy().into_owned();
    let (junit, sarif) = (path("a.xml"), path("a.sarif"));
    let bin = std::env::split_paths(&std::env::var_os("PATH").context("a PATH")?)
        .map(|dir| dir.join("true"))
        .find(|file| file.is_file())
        .context("there is `true`")?;
    let inner = ["--", "check", "--", &bin.to_string_lossy()];
    let options = ["--kernel", &kernel, "--kernel", &kernel, "--junit", &junit, "--sarif", &sarif];
    let mut command = pagetrace(&[&["vm"], options.as_slice(), &inner].concat())?;
    command
        .env("PATH", "/no/such/dir")
        .env("PAGETRACE_CACHE", scratch.0.join("cache"))
        .env("PAGETRACE_VM_ACCEL", "tcg");
    let ran = Running::start(&mut command)?.end()?.exits(69)?.says("cannot start qemu-system-x86_64")?;
    ensure!(ran.stdout.contains("exit code  69") && ran.stdout.matches("NO REPORT").count() == 2, "{ran:#?}");
    let text = fs::read_to_string(&junit)?;
    let document = roxmltree::Document::parse(&text)?;
    let count = |tag: &str| document.descendants().filter(|node| node.has_tag_name(tag)).count();
    ensure!((count("testsuite"), count("error"), count("failure")) == (2, 2, 0), "{text}");
    let log: Value = serde_json::from_str(&fs::read_to_string(&sarif)?)?;
    let schema = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas/sarif-2.1.0.json");
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    let index = compiler.compile(&schema.to_string_lossy(), &mut schemas).map_err(|err| anyhow::anyhow!("{err:#}"))?;
    schemas.validate(&log, index).map_err(|err| anyhow::anyhow!("{err:#}"))?;
    Ok(())
}

#[test]
fn more_than_the_guest_has_memory_for_is_refused() -> Result<()> {
    let scratch = Scratch::new("vm-memory")?;
    let kernel = header(&scratch)?;
    let share = scratch.0.join("share");
    fs::create_dir(&share)?;
    // Sparse: it has a length and no content.
    fs::File::create(share.join("big"))?.set_len(200 << 20)?;
    let share = share.to_string_lossy();
    let args = ["--kernel", &kernel, "--mem", "256M", "--share", &share, "--", "check", "--", "true"];
    vm(&scratch, &args)?.exits(2)?.says("too much for its 256 MiB")?.silent()?;
    Ok(())
}
