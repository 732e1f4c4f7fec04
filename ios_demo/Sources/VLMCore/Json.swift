// JSON: a document, its writer, and what of it is of which type. JsonReader.swift reads it.

/// A document. Objects keep their members in order, and names are compared by bytes: to Swift's `==`, "é" is "e\u{301}".
public enum Json: Sendable {
    case null
    case flag(Bool)
    case whole(Int)
    case number(Double)
    case text(String)
    case list([Json])
    case object([Member])

    public struct Member: Sendable {
        public let name: String
        public let value: Json

        public init(_ name: String, _ value: Json) {
            self.name = name
            self.value = value
        }
    }

    var text: String? { if case .text(let text) = self { text } else { nil } }
    var flag: Bool? { if case .flag(let flag) = self { flag } else { nil } }
    var whole: Int? { if case .whole(let whole) = self { whole } else { nil } }
    var list: [Json]? { if case .list(let list) = self { list } else { nil } }
    var members: [Member]? { if case .object(let members) = self { members } else { nil } }
    var isNull: Bool { if case .null = self { true } else { false } }

    /// Finite, whether it is written as a whole number or not.
    var number: Double? {
        switch self {
        case .whole(let whole): Double(whole)
        case .number(let number) where number.isFinite: number
        default: nil
        }
    }

    /// An id, a count of bytes, or a place.
    var id: Int? { whole.flatMap { (0...Int(Int32.max)).contains($0) ? $0 : nil } }

    /// Of an object, the last member of this name.
    subscript(name: String) -> Json? { members?.last { same($0.name, name) }?.value }

    /// Numbers that are not finite become null, which JSON has in their place.
    public var written: String {
        switch self {
        case .null: "null"
        case .flag(let flag): flag ? "true" : "false"
        case .whole(let whole): "\(whole)"
        case .number(let number): number.isFinite ? "\(number)" : "null"
        case .text(let text): Json.quoted(text)
        case .list(let items): "[" + items.map(\.written).joined(separator: ", ") + "]"
        case .object(let members):
            "{" + members.map { "\(Json.quoted($0.name)): \($0.value.written)" }.joined(separator: ", ") + "}"
        }
    }

    private static func quoted(_ text: String) -> String {
        var out = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"", "\\": out += "\\\(scalar)"
            case ..<" ":
                let digits = String(scalar.value, radix: 16)
                out += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out + "\""
    }
}

/// Whether two texts have the same bytes: Swift's own `==` also takes texts for equal that only look so.
public func same(_ a: String, _ b: String) -> Bool { a.utf8.elementsEqual(b.utf8) }
