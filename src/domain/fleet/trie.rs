//! A binary trie whose nodes say what is below them, so that a search leaves whole branches aside.
//!
//! Keys are bits of fixed places: what is alike is together, whatever the order in which it came, so nothing is ever rebalanced.
//! A path along which nothing branches is one node, so there are as many nodes as entries, and a change touches one path. The
//! lowest 32 bits of a key are the entry's slot, which makes keys unique.

/// No node.
const NONE: u32 = u32::MAX;

/// What is known of all entries below a node.
pub trait Summary: Clone {
    /// Takes up what is known of other entries.
    fn join(&mut self, other: &Self);
}

/// Whether something holds of the entries below a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// Of every one.
    All,
    /// Of some, perhaps; never said of a single entry.
    Part,
    /// Of none.
    Nothing,
}

/// What a search makes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is one of those that are looked for.
    Take,
    /// It is not.
    Leave,
    /// The search is to end without a result.
    GiveUp,
}

#[derive(Debug, Clone)]
struct Node<S> {
    /// An entry's key, or that of any entry below: they agree up to `bit`.
    key: u128,
    parent: u32,
    /// None for an entry.
    children: Option<[u32; 2]>,
    /// The first bit in which the children differ.
    bit: u32,
    summary: S,
}

/// The trie.
#[derive(Debug, Clone)]
pub struct Trie<S> {
    nodes: Vec<Node<S>>,
    vacant: Vec<u32>,
    root: u32,
}

impl<S> Default for Trie<S> {
    fn default() -> Self {
        Self { nodes: Vec::new(), vacant: Vec::new(), root: NONE }
    }
}

fn side(key: u128, bit: u32) -> usize {
    usize::from((key >> (127 - bit)) & 1 == 1)
}

#[expect(clippy::cast_possible_truncation, reason = "the lowest bits of a key are the slot")]
fn slot(key: u128) -> u32 {
    key as u32
}

impl<S: Summary> Trie<S> {
    fn node(&self, node: u32) -> &Node<S> {
        &self.nodes[node as usize]
    }

    fn node_mut(&mut self, node: u32) -> &mut Node<S> {
        &mut self.nodes[node as usize]
    }

    fn add(&mut self, node: Node<S>) -> u32 {
        if let Some(place) = self.vacant.pop() {
            *self.node_mut(place) = node;
            return place;
        }
        self.nodes.push(node);
        // A fleet has nowhere near so many servers.
        u32::try_from(self.nodes.len() - 1).unwrap_or(NONE)
    }

    /// Puts `new` in the place of `old` below `parent`.
    fn replace_child(&mut self, parent: u32, old: u32, new: u32) {
        self.node_mut(new).parent = parent;
        if parent == NONE {
            self.root = new;
            return;
        }
        if let Some(children) = &mut self.node_mut(parent).children {
            let place = usize::from(children[1] == old);
            children[place] = new;
        }
    }

    /// The summary of an entry.
    pub fn summary(&self, entry: u32) -> &S {
        &self.node(entry).summary
    }

    /// The key of an entry.
    pub fn key(&self, entry: u32) -> u128 {
        self.node(entry).key
    }

    /// Adds an entry, whose key must be new; returns what names it.
    pub fn insert(&mut self, key: u128, summary: S) -> u32 {
        let entry = self.add(Node { key, parent: NONE, children: None, bit: 127, summary });
        if self.root == NONE {
            self.root = entry;
            return entry;
        }
        let mut at = self.root;
        let bit = loop {
            let node = self.node(at);
            let differs = (node.key ^ key).leading_zeros();
            match node.children {
                Some(children) if differs >= node.bit => at = children[side(key, node.bit)],
                _ => break differs,
            }
        };
        let parent = self.node(at).parent;
        let children = if side(key, bit) == 0 { [entry, at] } else { [at, entry] };
        let summary = self.node(at).summary.clone();
        let branch = self.add(Node { key, parent, children: Some(children), bit, summary });
        self.replace_child(parent, at, branch);
        self.node_mut(at).parent = branch;
        self.node_mut(entry).parent = branch;
        let new = self.node(entry).summary.clone();
        let mut above = branch;
        while above != NONE {
            let node = self.node_mut(above);
            node.summary.join(&new);
            above = node.parent;
        }
        entry
    }

    /// Takes an entry out.
    pub fn remove(&mut self, entry: u32) {
        let branch = self.node(entry).parent;
        self.vacant.push(entry);
        if branch == NONE {
            self.root = NONE;
            return;
        }
        let (above, children) = (self.node(branch).parent, self.node(branch).children);
        let Some(children) = children else { return };
        let sibling = if children[0] == entry { children[1] } else { children[0] };
        self.replace_child(above, branch, sibling);
        self.vacant.push(branch);
        self.summarise_from(above);
    }

    /// Changes the summary of an entry that keeps its key.
    pub fn set_summary(&mut self, entry: u32, summary: S) {
        let node = self.node_mut(entry);
        node.summary = summary;
        let above = node.parent;
        self.summarise_from(above);
    }

    fn summarise_from(&mut self, mut at: u32) {
        while at != NONE {
            let node = self.node(at);
            let parent = node.parent;
            if let Some([left, right]) = node.children {
                let mut summary = self.node(left).summary.clone();
                summary.join(&self.node(right).summary);
                self.node_mut(at).summary = summary;
            }
            at = parent;
        }
    }

    /// The least of the entries that `verdict` takes, by `bound`, up to `most` of them, ascending. `bound` says what no entry
    /// below a node is less than, exactly for an entry, and nothing where none is looked for. None where `verdict` gave up.
    pub fn least<B: Ord + Copy>(
        &self,
        most: usize,
        bound: impl Fn(&S) -> Option<B>,
        mut verdict: impl FnMut(u32) -> Verdict,
    ) -> Option<Vec<(B, u32)>> {
        let mut found: Vec<(B, u32)> = Vec::new();
        if self.root == NONE || most == 0 {
            return Some(found);
        }
        let mut open = Vec::with_capacity(128);
        open.extend(bound(&self.node(self.root).summary).map(|bound| (bound, self.root)));
        while let Some((lower, at)) = open.pop() {
            if found.len() == most && found.last().is_some_and(|(worst, _)| *worst <= lower) {
                continue;
            }
            let node = self.node(at);
            let Some([left, right]) = node.children else {
                match verdict(slot(node.key)) {
                    Verdict::Take => {
                        let place = found.partition_point(|(other, _)| *other < lower);
                        found.insert(place, (lower, slot(node.key)));
                        found.truncate(most);
                    }
                    Verdict::Leave => {}
                    Verdict::GiveUp => return None,
                }
                continue;
            };
            let left = bound(&self.node(left).summary).map(|bound| (bound, left));
            let right = bound(&self.node(right).summary).map(|bound| (bound, right));
            match (left, right) {
                // The more promising one is looked at first.
                (Some(left), Some(right)) if left.0 <= right.0 => open.extend([right, left]),
                (Some(left), Some(right)) => open.extend([left, right]),
                (left, right) => open.extend(left.or(right)),
            }
        }
        Some(found)
    }

    /// Hands the summaries of all entries that `cover` holds of to `take`, as few as there need be.
    pub fn gather(&self, cover: impl Fn(&S) -> Cover, mut take: impl FnMut(&S)) {
        let mut open = Vec::with_capacity(128);
        if self.root != NONE {
            open.push(self.root);
        }
        while let Some(at) = open.pop() {
            let node = self.node(at);
            match (cover(&node.summary), node.children) {
                (Cover::All, _) => take(&node.summary),
                (Cover::Part, Some(children)) => open.extend(children),
                (Cover::Part | Cover::Nothing, _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
