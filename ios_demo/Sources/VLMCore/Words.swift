// Before the merges a text is cut into words. What a tokenizer.json asks beyond this is refused.
import Foundation

/// Unicode's White_Space, for a character class: an engine's own `\s` may leave some out.
private let spaces = #"\t-\r \u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000"#
private let contractions = #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"#
private let rest = #"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
private let known = [
    "Qwen2": contractions + #"\p{N}"# + rest,
    "Llama 3": contractions + #"\p{N}{1,3}"# + rest,
]
private let gpt2 = #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#

func refused(_ what: String) -> EdgeError {
    .bundle("tokenizer.json \(what), which this app does not read", hint: "a bundle of another model")
}

/// Steps of a sequence of steps; none of null.
func steps(_ told: Json?, _ inner: String) -> [Json] {
    guard let told, told.members != nil else { return [] }
    if told["type"]?.text != "Sequence" { return [told] }
    return (told[inner]?.list ?? []).flatMap { steps($0, inner) }
}

/// Cuts a normalised stretch of a text.
enum Words: Sendable {
    case whole
    case metaspace(Metaspace)
    case byteLevel(Pattern)
    /// Each digit for itself, and what lies between by the other pattern.
    case digits(Pattern, Pattern)

    init(_ told: Json?) throws {
        let own = steps(told, "pretokenizers")
        let types = own.map { $0["type"]?.text ?? "" }
        switch types {
        case []: self = .whole
        case ["Metaspace"]: self = .metaspace(try Metaspace(own[0]))
        case ["ByteLevel"]: self = .byteLevel(try Words.level(own[0], nil))
        case ["Split", "ByteLevel"]: self = .byteLevel(try Words.level(own[1], Words.split(own[0])))
        case ["Digits", "ByteLevel"]:
            if own[0]["individual_digits"]?.flag != true { throw refused("has the pre-tokenizer \(own[0].written)") }
            self = .digits(try Pattern(#"\p{N}"#), try Words.level(own[1], nil))
        default: throw refused("cuts a text by \(types)")
        }
    }

    /// `begins`: whether the stretch stands where the text begins.
    func cut(_ text: Bytes, begins: Bool) -> [Bytes] {
        switch self {
        case .whole: [text]
        case .metaspace(let own): own.cut(text, begins: begins)
        case .byteLevel(let pattern): pattern.isolated(text).map(ByteLevel.spelled)
        case .digits(let digit, let others):
            digit.isolated(text).flatMap { others.isolated($0) }.map(ByteLevel.spelled)
        }
    }

    private static func level(_ told: Json, _ split: String?) throws -> Pattern {
        if told["add_prefix_space"]?.flag != false || (told["use_regex"]?.flag != false) != (split == nil) {
            throw refused("has the pre-tokenizer \(told.written)")
        }
        return try Pattern(split ?? gpt2)
    }

    private static func split(_ told: Json) throws -> String {
        let regex = told["pattern"]?["Regex"]?.text ?? ""
        if told["behavior"]?.text != "Isolated" || told["invert"]?.flag == true || !known.values.contains(regex) {
            let names = known.keys.sorted().joined(separator: " or ")
            throw refused("cuts words by a rule other than that of \(names): \(regex)")
        }
        return regex
    }
}

/// A regular expression that finds words.
struct Pattern: @unchecked Sendable {  // NSRegularExpression never changes
    private let expression: NSRegularExpression

    init(_ regex: String) throws {
        let wide = Bytes(regex).replacing(Bytes(#"[^\s"#), with: Bytes("[^\(spaces)"))
            .replacing(Bytes(#"\S"#), with: Bytes("[^\(spaces)]"))
            .replacing(Bytes(#"\s"#), with: Bytes("[\(spaces)]")).text
        do {
            expression = try NSRegularExpression(pattern: wide)
        } catch {
            throw refused("cuts words by \(regex)")
        }
    }

    /// What matches, and what lies between.
    func isolated(_ bytes: Bytes) -> [Bytes] {
        let text = bytes.text
        let units = Array(text.utf16)
        var found: [Bytes] = []
        func add(_ range: Range<Int>) {
            if !range.isEmpty { found.append(Bytes(String(decoding: units[range], as: UTF16.self))) }
        }
        var end = 0
        for match in expression.matches(in: text, range: NSRange(location: 0, length: units.count)) {
            add(end..<match.range.location)
            end = match.range.location + match.range.length
            add(match.range.location..<end)
        }
        add(end..<units.count)
        return found
    }
}

/// SentencePiece's: spaces are visible, and one stands before a text, or before each stretch of it.
struct Metaspace: Sendable {
    private let mark: Bytes
    private let scheme: String
    private let split: Bool

    init(_ told: Json) throws {
        mark = Bytes(told["replacement"]?.text ?? "")
        scheme = told["prepend_scheme"]?.text ?? ""
        split = told["split"]?.flag != false
        if mark.text.unicodeScalars.count != 1 || !["always", "first", "never"].contains(scheme) {
            throw refused("prepends \(mark.text) by \(scheme)")
        }
    }

    func cut(_ text: Bytes, begins: Bool) -> [Bytes] {
        let plain = text.replacing(Bytes(" "), with: mark)
        let prefixed = scheme == "always" || scheme == "first" && begins
        let marked = prefixed && !plain.starts(with: mark) ? mark + plain : plain
        if !split { return [marked] }
        var found: [Bytes] = []
        var start = 0
        for at in marked.indices.dropFirst() where marked[at] == mark[0] && marked.has(mark, at: at) {
            found.append(Bytes(marked[start..<at]))
            start = at
        }
        return found + [Bytes(marked[start...])]
    }
}
