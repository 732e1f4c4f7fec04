// Texts as UTF-8 bytes: what a tokenizer compares. Swift's own texts are equal where they only look so.

typealias Bytes = [UInt8]

extension Bytes {
    init(_ text: String) { self = Array(text.utf8) }

    var text: String { String(decoding: self, as: UTF8.self) }

    /// Whether these bytes stand at `place`.
    func has(_ other: Bytes, at place: Int) -> Bool {
        place + other.count <= count && self[place...].starts(with: other)
    }

    /// Every `old` replaced, from the left.
    func replacing(_ old: Bytes, with new: Bytes) -> Bytes {
        if old.isEmpty { return self }
        var out: Bytes = []
        out.reserveCapacity(count)
        var at = 0
        while at < count {
            if self[at] == old[0], has(old, at: at) {
                out.append(contentsOf: new)
                at += old.count
            } else {
                out.append(self[at])
                at += 1
            }
        }
        return out
    }
}

/// How many bytes a character takes that begins with this one.
func characterLength(_ first: UInt8) -> Int { first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4 }
