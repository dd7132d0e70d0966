//! The kernel's symbol table, from the text of `/proc/kallsyms`: names to addresses and back.
//!
//! Knows loaded modules and JIT-compiled BPF programs too. Does no I/O, and never guesses: an address outside every
//! function resolves to nothing. Format: `s_show()` in `kernel/kallsyms.c`.

#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use super::names::{self, Names};

/// Farther than this from its symbol's start an address is in no function: the largest functions of a kernel are a
/// few ten KiB, while gaps between modules are pages to gigabytes.
const MAX_FUNCTION: u64 = 1 << 20;

/// Farther than this behind its symbol's start an address is in no variable that has a lock in it.
const MAX_VARIABLE: u64 = 1 << 16;

#[derive(Debug, Clone, Copy)]
struct Symbol {
    address: u64,
    /// Offset of the name in the text; names and modules are sliced out of it again.
    name: u32,
    name_len: u16,
    /// Length of the module's name, which stands in brackets one tab after the symbol's; 0 for the kernel proper.
    module_len: u16,
    kind: u8,
}

/// A function that contains an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved<'a> {
    /// The symbol's name.
    pub name: &'a str,
    /// Bytes from the symbol's start to the address.
    pub offset: u64,
    /// Bytes from the symbol's start to the next function's; `None` if no function follows within reach.
    pub size: Option<u64>,
    /// The module's name (`bpf` for JIT-compiled programs); `None` for the kernel proper.
    pub module: Option<&'a str>,
}

/// All symbols of one reading of `/proc/kallsyms`.
#[derive(Debug)]
pub struct Kallsyms {
    text: String,
    /// In order of the text.
    symbols: Vec<Symbol>,
    /// Indices of functions in `symbols`, by address, one per address. Most runs have nothing to resolve.
    functions: OnceLock<Vec<u32>>,
    /// Indices in `symbols` by name.
    names: Names,
    hidden: bool,
    malformed: usize,
}

impl Kallsyms {
    /// Reads the table. Lines that are not symbols are counted in [`Kallsyms::malformed`], not errors.
    #[must_use]
    pub fn parse(text: String) -> Self {
        let mut symbols = Vec::with_capacity(text.len() / 36 + 1);
        let mut malformed = 0;
        let mut start = 0;
        for line in text.as_bytes().split_inclusive(|&byte| byte == b'\n') {
            match parse_line(line, start) {
                Some(symbol) => symbols.push(symbol),
                None if line.trim_ascii().is_empty() => {}
                None => malformed += 1,
            }
            start += line.len();
        }
        let hidden = !symbols.is_empty() && symbols.iter().all(|symbol| symbol.address == 0);
        let names = Names::build(symbols.len(), |place| {
            symbols.get(place).map(|symbol| names::hash(0, name_of(text.as_bytes(), symbol)))
        });
        Self { text, symbols, functions: OnceLock::new(), names, hidden, malformed }
    }

    fn functions(&self) -> &[u32] {
        self.functions.get_or_init(|| {
            let text = self.text.as_bytes();
            let functions = (0u32..).zip(&self.symbols).filter(|(_, symbol)| is_function(text, symbol));
            let mut order: Vec<(u64, u32)> = functions.map(|(i, symbol)| (symbol.address, i)).collect();
            // The kernel proper's are sorted as they come, and a stable sort makes use of that.
            order.sort();
            let best = |aliases: &[(u64, u32)]| {
                aliases.iter().map(|&(_, i)| i).min_by_key(|&i| rank(text, &self.symbols[i as usize]))
            };
            order.chunk_by(|a, b| a.0 == b.0).filter_map(best).collect()
        })
    }

    /// Whether the kernel showed names but hid every address, as it does without `CAP_SYSLOG` or with
    /// `kernel.kptr_restrict` at 2. Names can be looked up then, addresses cannot.
    #[must_use]
    pub fn addresses_hidden(&self) -> bool {
        self.hidden
    }

    /// How many symbols there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are none, as on a kernel without `CONFIG_KALLSYMS`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// Lines that were not understood.
    #[must_use]
    pub fn malformed(&self) -> usize {
        self.malformed
    }

    /// Whether a symbol of this name exists, function or data, in the kernel or a module.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).next().is_some()
    }

    /// The address of the symbol, function or data; that of the kernel proper if modules have the name too. `None` if
    /// addresses are hidden.
    #[must_use]
    pub fn address_of(&self, name: &str) -> Option<u64> {
        let known = || self.find(name).filter(|symbol| symbol.address != 0);
        known().find(|symbol| symbol.module_len == 0).or_else(|| known().next()).map(|symbol| symbol.address)
    }

    /// How many functions have this name. A probe placed by name on one that has several hits the first or fails.
    #[must_use]
    pub fn function_count(&self, name: &str) -> usize {
        self.find(name).filter(|symbol| is_function(self.text.as_bytes(), symbol)).count()
    }

    /// The function that contains `address`.
    #[must_use]
    pub fn resolve(&self, address: u64) -> Option<Resolved<'_>> {
        let functions = self.functions();
        let symbol_at = |position: usize| self.symbols.get(*functions.get(position)? as usize);
        let next = functions
            .partition_point(|&i| self.symbols.get(i as usize).is_some_and(|symbol| symbol.address <= address));
        let symbol = symbol_at(next.checked_sub(1)?)?;
        let offset = address - symbol.address;
        let name = self.slice(symbol.name as usize, usize::from(symbol.name_len))?;
        if offset >= MAX_FUNCTION || matches!(name, "_etext" | "_einittext") {
            return None;
        }
        let size = symbol_at(next).map(|next| next.address - symbol.address).filter(|&size| size <= MAX_FUNCTION);
        Some(Resolved { name, offset, size, module: self.module(symbol) })
    }

    /// The first symbol of any kind that begins at `address`. Looks at every symbol: keep the answer.
    #[must_use]
    pub fn name_at(&self, address: u64) -> Option<&str> {
        let symbol = self.symbols.iter().find(|symbol| symbol.address == address)?;
        self.slice(symbol.name as usize, usize::from(symbol.name_len))
    }

    /// The variable that begins at `address`, or else the nearest before it. Looks at every symbol: keep the answer.
    #[must_use]
    pub fn variable(&self, address: u64) -> Option<Resolved<'_>> {
        let before = |symbol: &&Symbol| symbol.address <= address && address - symbol.address < MAX_VARIABLE;
        let symbol = self.symbols.iter().filter(is_data).filter(before).max_by_key(|symbol| symbol.address)?;
        let name = self.slice(symbol.name as usize, usize::from(symbol.name_len))?;
        Some(Resolved { name, offset: address - symbol.address, size: None, module: self.module(symbol) })
    }

    /// Of the variables of this name in the kernel proper, or in one module, the how-manieth by address begins there, from 1 on,
    /// and of how many: files have variables of their own that are called alike.
    #[must_use]
    pub fn namesake(&self, name: &str, module: Option<&str>, start: u64) -> (usize, usize) {
        let alike = || self.find(name).filter(is_data).filter(|symbol| self.module(symbol) == module);
        (alike().filter(|symbol| symbol.address <= start).count(), alike().count())
    }

    fn module(&self, symbol: &Symbol) -> Option<&str> {
        let len = usize::from(symbol.module_len);
        let start = symbol.name as usize + usize::from(symbol.name_len) + 2;
        if len == 0 { None } else { self.slice(start, len) }
    }

    fn slice(&self, start: usize, len: usize) -> Option<&str> {
        self.text.get(start..start.checked_add(len)?)
    }

    fn find<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Symbol> + 'a {
        self.names
            .candidates(names::hash(0, name.as_bytes()))
            .filter_map(|i| self.symbols.get(i as usize))
            .filter(move |symbol| name_of(self.text.as_bytes(), symbol) == name.as_bytes())
    }
}

/// `ffffffff81000000 T name` or `… name<TAB>[module]`.
fn parse_line(line: &[u8], start: usize) -> Option<Symbol> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let digits = line.iter().position(|&byte| byte == b' ')?;
    let (hex, rest) = line.split_at_checked(digits)?;
    let [b' ', kind, b' ', name @ ..] = rest else { return None };
    let (name, module) = match name.iter().position(|&byte| byte == b'\t') {
        Some(tab) => {
            let (name, module) = name.split_at_checked(tab)?;
            (name, module.strip_prefix(b"\t[")?.strip_suffix(b"]")?)
        }
        None => (name, &[][..]),
    };
    if name.is_empty() {
        return None;
    }
    Some(Symbol {
        address: parse_hex(hex)?,
        name: u32::try_from(start + digits + 3).ok()?,
        name_len: u16::try_from(name.len()).ok()?,
        module_len: u16::try_from(module.len()).ok()?,
        kind: *kind,
    })
}

fn parse_hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

fn name_of<'a>(text: &'a [u8], symbol: &Symbol) -> &'a [u8] {
    let start = symbol.name as usize;
    text.get(start..start + usize::from(symbol.name_len)).unwrap_or(&[])
}

fn is_function(text: &[u8], symbol: &Symbol) -> bool {
    // arm64 and riscv mark code and data inside functions with `$x` and `$d`.
    matches!(symbol.kind, b't' | b'T' | b'w' | b'W')
        && symbol.address != 0
        && text.get(symbol.name as usize) != Some(&b'$')
}

fn is_data(symbol: &&Symbol) -> bool {
    matches!(symbol.kind.to_ascii_lowercase(), b'b' | b'd' | b'r' | b'v')
}

/// Of several names for one address the one a reader knows: fewest underscores before it, then global, then short.
fn rank<'a>(text: &'a [u8], symbol: &Symbol) -> (bool, usize, bool, u16, &'a [u8]) {
    let name = name_of(text, symbol);
    let marker = matches!(name, b"_text" | b"_stext" | b"_etext" | b"_sinittext" | b"_einittext");
    let underscores = name.iter().take_while(|&&byte| byte == b'_').count();
    (marker, underscores, symbol.kind != b'T', symbol.name_len, name)
}
