// Added tokens, which are found in a text before it is cut into words.

struct AddedToken: Sendable {
    let id: Int
    let content: Bytes
    let special: Bool
    let normalized: Bool

    init(_ told: Fields) throws {
        id = try told.id("id")
        content = Bytes(try told.text("content"))
        special = try told.flag("special")
        normalized = try told.flag("normalized")
        for name in ["lstrip", "rstrip", "single_word"] where try !special && told.flag(name) {
            throw refused("has the added token \(content.text) with \(name)")
        }
    }
}

/// The leftmost, and of those the longest. Special ones are matched, and stay text.
struct AddedTokens: Sendable {
    private let first: [UInt8: [(content: Bytes, token: AddedToken)]]

    /// `spelled`: how they look in the texts that are searched.
    init(_ tokens: [AddedToken], spelled: (Bytes) -> Bytes = { $0 }) {
        let own = Dictionary(tokens.map { (spelled($0.content), $0) }) { _, last in last }
        let sorted = own.filter { !$0.key.isEmpty }.map { (content: $0.key, token: $0.value) }
            .sorted { $0.content.count > $1.content.count }
        first = Dictionary(grouping: sorted) { $0.content[0] }
    }

    /// Stretches of text, with nil, and ids between them.
    func split(_ text: Bytes, found: (Bytes, Int?) -> Void) {
        var (start, at) = (0, 0)
        while at < text.count {
            let match = first[text[at]]?.first { text.has($0.content, at: at) }
            if let match, !match.token.special {
                if at > start { found(Bytes(text[start..<at]), nil) }
                found(match.content, match.token.id)
                start = at + match.content.count
            }
            at += match?.content.count ?? 1
        }
        if start < text.count { found(Bytes(text[start...]), nil) }
    }
}
