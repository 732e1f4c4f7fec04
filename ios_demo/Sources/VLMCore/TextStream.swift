// Tokens in, text out: a character that is cut waits for its other bytes, and a stop string ends a text.

/// The pieces together are what the tokenizer decodes.
struct TextStream {
    private let spelling: (Int) -> Bytes
    private var held: Bytes = []
    private var atStart: Bool

    init(_ spelling: @escaping (Int) -> Bytes, stripsSpace: Bool) {
        self.spelling = spelling
        atStart = stripsSpace
    }

    /// The text that this token completes; empty while a character is cut.
    mutating func push(_ id: Int) -> String {
        var bytes = spelling(id)
        if !bytes.isEmpty, atStart {
            atStart = false
            if bytes[0] == 0x20 { bytes.removeFirst() }
        }
        held += bytes
        var out: Bytes = []
        var at = 0
        while at < held.count {
            let count = TextStream.character(held, at)
            if count == 0 { break }
            if count > 0 {
                out.append(contentsOf: held[at..<at + count])
            } else {
                for _ in 0 ..< -count { out.append(contentsOf: "\u{FFFD}".utf8) }
            }
            at += abs(count)
        }
        held.removeFirst(at)
        return out.text
    }

    /// What is left: bytes that never became a character.
    mutating func finish() -> String {
        defer { held = [] }
        return String(repeating: "\u{FFFD}", count: held.count)
    }

    /// Bytes of the UTF-8 character at a place; minus the bytes that are none; 0 where the end cuts it.
    private static func character(_ bytes: Bytes, _ at: Int) -> Int {
        let first = bytes[at]
        if first < 0x80 { return 1 }
        if !(0xC2...0xF4).contains(first) { return -1 }
        let count = characterLength(first)
        for k in 1..<count {
            if at + k >= bytes.count { return 0 }
            // Overlong forms, surrogates, and what lies beyond U+10FFFF.
            let least: UInt8 = k > 1 ? 0x80 : first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80
            let most: UInt8 = k > 1 ? 0xBF : first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF
            if !(least...most).contains(bytes[at + k]) { return -k }
        }
        return count
    }
}

/// Lets text through up to the stop string that is complete first; what may yet become one is held back.
struct StopFilter {
    private let strings: [Bytes]
    private var held: Bytes = []
    private(set) var stopped = false

    init(_ strings: [String]) { self.strings = strings.map { Bytes($0) }.filter { !$0.isEmpty } }

    /// What is certain to belong to the answer; nothing once it has stopped.
    mutating func push(_ text: String) -> String {
        if stopped { return "" }
        let all = held + Bytes(text)
        let found = strings.compactMap { string in
            all.indices.first { all.has(string, at: $0) }.map { (end: $0 + string.count, start: $0) }
        }
        if let first = found.min(by: { $0 < $1 }) {
            stopped = true
            held = []
            return Bytes(all[..<first.start]).text
        }
        let end = all.count - (strings.map { StopFilter.overlap(all, $0) }.max() ?? 0)
        held = Bytes(all[end...])
        return Bytes(all[..<end]).text
    }

    /// What was held back, at the end of the answer.
    mutating func finish() -> String {
        defer { held = [] }
        return held.text
    }

    private static func overlap(_ text: Bytes, _ stop: Bytes) -> Int {
        let most = min(text.count, stop.count - 1)
        return (0...most).last { text.suffix($0).elementsEqual(stop.prefix($0)) } ?? 0
    }
}
