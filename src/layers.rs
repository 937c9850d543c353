//! Checks that the modules depend on each other only as the documentation of the crate says.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the floors that the documentation of the crate lists, the highest first.
fn floors() -> Vec<Vec<String>> {
    let (_, chain) = include_str!("lib.rs")
        .split_once("//! Dependencies point one way: `")
        .expect("lib.rs says which way dependencies point");
    let chain = chain.split('`').next().unwrap().replace("\n//!", "");
    let floor = |names: &str| names.split(',').map(|name| name.trim().into()).collect();
    chain.split('→').map(floor).collect()
}

/// Adds the source files below `folder` to `out`, except tests.
fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().unwrap() == "tests" {
            continue;
        }
        if path.is_dir() {
            sources(&path, out);
        } else {
            out.push(path);
        }
    }
}

#[test]
fn modules_use_only_those_below() {
    let floors = floors();
    let floor_of = |module: &str| {
        floors
            .iter()
            .position(|floor| floor.iter().any(|m| m == module))
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let place = file.strip_prefix(&root).unwrap().with_extension("");
        let module = place.iter().next().unwrap().to_str().unwrap();
        if ["lib", "main", "layers"].contains(&module) {
            continue;
        }
        let own = floor_of(module).unwrap_or_else(|| panic!("lib.rs has no floor for {module}"));
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for (line, path) in code.flat_map(|l| l.split("crate::").skip(1).map(move |p| (l, p))) {
            let used = path
                .split(|c: char| c != '_' && !c.is_alphanumeric())
                .next()
                .unwrap();
            let is_below = floor_of(used).is_some_and(|floor| floor > own);
            assert!(used == module || is_below, "{}: {line}", file.display());
        }
    }
}
