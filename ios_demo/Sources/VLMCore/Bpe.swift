// Byte-pair encoding: a word becomes symbols, and the pair of the lowest rank is joined until there is none.

/// What a tokenizer.json says of its merges.
struct BpeRules {
    /// What stands for a character that has neither a symbol nor bytes.
    let unknown: Int?
    /// Once for several of those.
    let fuse: Bool
    let byteFallback: Bool
    /// A word that is in the vocabulary is not merged.
    let wholeWords: Bool

    init(_ model: Json, _ vocab: [Bytes: Int]) {
        unknown = model["unk_token"]?.text.flatMap { vocab[Bytes($0)] }
        fuse = model["fuse_unk"]?.flag == true
        byteFallback = model["byte_fallback"]?.flag == true
        wholeWords = model["ignore_merges"]?.flag == true
    }
}

struct Bpe: Sendable {
    private let vocab: [Bytes: Int]
    private let symbols: [UInt32: Int]  // of one character, whose bytes are the key
    private let bytes: [Int?]
    private let joins: [UInt64: Join]
    private let unknown: Int?
    private let fuse: Bool
    private let wholeWords: Bool

    private struct Join {
        let rank: Int
        let id: Int
    }

    /// Throws EdgeError on a merge that the vocabulary lacks.
    init(_ vocab: [Bytes: Int], merges: [(Bytes, Bytes)], rules: BpeRules) throws {
        self.vocab = vocab
        (unknown, fuse, wholeWords) = (rules.unknown, rules.fuse, rules.wholeWords)
        var symbols: [UInt32: Int] = [:]
        for (piece, id) in vocab where !piece.isEmpty && characterLength(piece[0]) == piece.count {
            symbols[Bpe.packed(piece[...])] = id
        }
        self.symbols = symbols
        bytes = (0..<256).map { rules.byteFallback ? vocab[Bytes(Bpe.spelling($0))] : nil }
        var joins: [UInt64: Join] = [:]
        joins.reserveCapacity(merges.count)
        for (rank, (a, b)) in merges.enumerated() {
            guard let left = vocab[a], let right = vocab[b], let whole = vocab[a + b] else {
                throw EdgeError.bundle("tokenizer.json merges \(a.text) and \(b.text), and its vocabulary lacks one")
            }
            let key = Bpe.key(left, right)
            if joins[key] == nil { joins[key] = Join(rank: rank, id: whole) }
        }
        self.joins = joins
    }

    func encode(_ word: Bytes, into out: inout [Int]) {
        if word.isEmpty { return }
        if wholeWords, let whole = vocab[word] {
            out.append(whole)
        } else {
            out.append(contentsOf: joined(split(word)).filter { $0 >= 0 })
        }
    }

    private func split(_ word: Bytes) -> [Int] {
        var ids: [Int] = []
        ids.reserveCapacity(word.count)
        var hole = false  // the last character had no id at all
        var at = 0
        while at < word.count {
            let piece = word[at..<min(at + characterLength(word[at]), word.count)]
            at = piece.endIndex
            if let id = symbols[Bpe.packed(piece)] {
                ids.append(id)
                hole = false
                continue
            }
            let own = piece.compactMap { bytes[Int($0)] }
            if own.count == piece.count {
                ids.append(contentsOf: own)
            } else if let unknown, !(fuse && hole) {
                ids.append(unknown)
            }
            hole = own.count < piece.count
        }
        return ids
    }

    /// A pair that may be joined, as it was when it was found.
    private struct Offer: Comparable {
        let rank: Int
        let left: Int
        let right: Int
        let pair: UInt64
        let id: Int

        static func < (a: Offer, b: Offer) -> Bool { (a.rank, a.left) < (b.rank, b.left) }
    }

    /// The leftmost of equal ranks first. What was joined to its left neighbour is −1.
    private func joined(_ given: [Int]) -> [Int] {
        var ids = given
        var next = Array(1..<ids.count + 1)
        var before = Array(-1..<ids.count - 1)
        var queue = Heap<Offer>()
        func offer(_ left: Int) {
            guard left >= 0, next[left] < ids.count else { return }
            let pair = Bpe.key(ids[left], ids[next[left]])
            guard let join = joins[pair] else { return }
            queue.push(Offer(rank: join.rank, left: left, right: next[left], pair: pair, id: join.id))
        }
        ids.indices.forEach(offer)
        while let best = queue.pop() {
            let (left, right) = (best.left, best.right)
            if ids[left] < 0 || ids[right] < 0 || next[left] != right { continue }
            if Bpe.key(ids[left], ids[right]) != best.pair { continue }
            ids[left] = best.id
            ids[right] = -1
            next[left] = next[right]
            if next[right] < ids.count { before[next[right]] = left }
            offer(before[left])
            offer(left)
        }
        return ids
    }

    private static func key(_ left: Int, _ right: Int) -> UInt64 { UInt64(left) << 32 | UInt64(right) }

    private static func packed(_ piece: ArraySlice<UInt8>) -> UInt32 { piece.reduce(0) { $0 << 8 | UInt32($1) } }

    private static func spelling(_ byte: Int) -> String {
        let digits = String(byte, radix: 16, uppercase: true)
        return "<0x\(byte < 16 ? "0" : "")\(digits)>"
    }
}

/// Binary heap: the least first.
private struct Heap<Element: Comparable> {
    private var items: [Element] = []

    mutating func push(_ item: Element) {
        items.append(item)
        var at = items.count - 1
        while at > 0, items[at] < items[(at - 1) / 2] {
            items.swapAt(at, (at - 1) / 2)
            at = (at - 1) / 2
        }
    }

    mutating func pop() -> Element? {
        guard let last = items.popLast() else { return nil }
        guard let first = items.first else { return last }
        items[0] = last
        var at = 0
        while true {
            var least = at
            for child in [2 * at + 1, 2 * at + 2] where child < items.count && items[child] < items[least] {
                least = child
            }
            if least == at { return first }
            items.swapAt(at, least)
            at = least
        }
    }
}
