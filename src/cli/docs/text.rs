//! What the man pages say beyond the definitions of the command line.

/// Date of the last change to the pages of section 1.
pub const DATE: &str = "2026-11-29";

/// Files, for hushfs(1): a path, and what it is.
pub const FILES: [(&str, &str); 3] = [
    (
        "$XDG_STATE_HOME/hushfs/ (~/.local/state/hushfs/)",
        "What this user on this machine remembers of each library: the id under which it writes, and the newest index that \
         it has seen. Nothing in it is secret. Without it this machine is a new device, and an older copy of a library is \
         not noticed.",
    ),
    (
        "DIR/key, DIR/index, DIR/data",
        "The library: the master key under each password, names and attributes, contents. A copy of these folders is a \
         copy of the library.",
    ),
    (
        "DIR/new",
        "Unfinished files of the machine that writes. Leave it out when you sync.",
    ),
];

/// Limitations, for hushfs-mount(1).
pub const LIMITATIONS: [(&str, &str); 3] = [
    (
        "umount(8) and fusermount3 -u",
        "return before everything is written; the process behind the mount writes the rest and then ends. hushfs umount \
         waits for that and reports errors.",
    ),
    (
        "SEEK_DATA and SEEK_HOLE",
        "see what was stored through a shared memory map only after msync(2), if they use the same open file.",
    ),
    ("O_TMPFILE", "is not supported."),
];

/// Other pages, with their sections.
pub const SEE_ALSO: [(&str, &str); 5] = [
    ("hushfs", "1"),
    ("hushfs-format", "5"),
    ("hushfs-foreign", "7"),
    ("hushfs-security", "7"),
    ("hushfs-stores", "7"),
];

/// Examples: the page, what is done, and what to type for it.
pub const EXAMPLES: &[(&str, &str, &str)] = &[
    (
        "hushfs",
        "Create a library, mount it on ~/music, and unmount it:",
        "hushfs mount --create ~/library ~/music\nhushfs umount ~/music",
    ),
    (
        "hushfs",
        "Sync the library to a bucket, and bring it back on another machine:",
        "rclone sync ~/library remote:bucket/library --filter '- /new/**'\n\
         rclone copy remote:bucket/library ~/library",
    ),
    (
        "hushfs-init",
        "Create a library; the password is asked for twice:",
        "hushfs init ~/library",
    ),
    (
        "hushfs-init",
        "The same in a script, with the recovery code in a file:",
        "hushfs init --password-file ~/password --new-recovery-file ~/library.code ~/library",
    ),
    (
        "hushfs-mount",
        "Mount a library in the background:",
        "hushfs mount ~/library ~/music",
    ),
    (
        "hushfs-mount",
        "Read the password from a password manager:",
        "hushfs mount --password-command 'pass show library' ~/library ~/music",
    ),
    (
        "hushfs-mount",
        "Let other users read and write, subject to the permissions of the files, and wait longer for a slow network:",
        "hushfs mount --allow-other -o timeout=120 /srv/library /srv/music",
    ),
    (
        "hushfs-mount",
        "Show all files as those of user and group 1000, whoever wrote them:",
        "hushfs mount --uid 1000 --gid 1000 ~/library ~/music",
    ),
    (
        "hushfs-mount",
        "Print nothing, and append the log to a file:",
        "hushfs mount --quiet --log-file ~/hushfs.log ~/library ~/music",
    ),
    (
        "hushfs-mount",
        "Open a library whose passwords are lost:",
        "hushfs mount --recovery ~/library ~/music",
    ),
    (
        "hushfs-mount",
        "List what is mounted:",
        "findmnt -t fuse.hushfs",
    ),
    (
        "hushfs-umount",
        "Unmount, and return when everything is written:",
        "hushfs umount ~/music",
    ),
    (
        "hushfs-umount",
        "Give up on a store that does not answer; what is lost is reported:",
        "hushfs umount --force ~/music",
    ),
    (
        "hushfs-passwd",
        "Change the password:",
        "hushfs passwd ~/library",
    ),
    (
        "hushfs-passwd",
        "Set a new password with the recovery code:",
        "hushfs passwd --recovery ~/library",
    ),
    (
        "hushfs-key",
        "List everything that opens a library:",
        "hushfs key list ~/library",
    ),
    (
        "hushfs-key-list",
        "List the passwords and key files with their labels; the library's password is read from a file:",
        "hushfs key list --password-file ~/password ~/library",
    ),
    (
        "hushfs-key-add",
        "Create a key file, and add it as a second way to open the library:",
        "hushfs key add --generate --new-key-file ~/library.key --label laptop ~/library",
    ),
    (
        "hushfs-key-add",
        "Add a second password:",
        "hushfs key add ~/library",
    ),
    (
        "hushfs-key-remove",
        "Remove the slot whose id begins with 3f2a:",
        "hushfs key remove ~/library 3f2a",
    ),
    (
        "hushfs-key-recovery",
        "Show the recovery code again, at a terminal:",
        "hushfs key recovery ~/library",
    ),
    (
        "hushfs-info",
        "Show whether deleting frees space, as JSON:",
        "hushfs info --json --key-file ~/library.key ~/library",
    ),
    (
        "hushfs-verify",
        "Check every file, and report damage:",
        "hushfs verify ~/library",
    ),
    (
        "hushfs-convert",
        "Copy a mounted gocryptfs or rclone crypt folder into a new library:",
        "hushfs convert --plain ~/decrypted ~/library",
    ),
    (
        "hushfs-convert",
        "Convert an encrypted bucket of Minio Music Server:",
        "hushfs convert --password-file old --new-password-file new ~/bucket ~/library",
    ),
];
