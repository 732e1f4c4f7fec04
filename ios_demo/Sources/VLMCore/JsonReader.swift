// JSON reader: strict, of bytes.
import Foundation

/// Why a text is no JSON.
struct JsonError: Error {
    let reason: String
}

struct JsonReader {
    private static let deepest = 200
    private let bytes: [UInt8]
    private let unique: Bool
    private var at = 0
    private var depth = 0

    /// `unique`: refuse an object that names something twice. Throws JsonError.
    static func parse(_ bytes: some Sequence<UInt8>, unique: Bool = false) throws -> Json {
        var reader = JsonReader(bytes: Array(bytes), unique: unique)
        let found = try reader.value()
        reader.space()
        if reader.at < reader.bytes.count { throw reader.fail("more after the end") }
        return found
    }

    private init(bytes: [UInt8], unique: Bool) {
        self.bytes = bytes
        self.unique = unique
    }

    private var next: UInt8? { at < bytes.count ? bytes[at] : nil }

    private mutating func value() throws -> Json {
        space()
        switch next {
        case nil: throw fail("it ends early")
        case UInt8(ascii: "{"): return .object(try members())
        case UInt8(ascii: "["):
            var items: [Json] = []
            try each(until: UInt8(ascii: "]")) { try items.append($0.value()) }
            return .list(items)
        case UInt8(ascii: "\""): return .text(try string())
        case UInt8(ascii: "t"): return try word("true", .flag(true))
        case UInt8(ascii: "f"): return try word("false", .flag(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func members() throws -> [Json.Member] {
        var found: [Json.Member] = []
        var names: Set<[UInt8]> = []
        try each(until: UInt8(ascii: "}")) { reader in
            let name = try reader.string()
            if reader.unique, !names.insert(Array(name.utf8)).inserted { throw reader.fail("\(name) stands twice") }
            reader.space()
            try reader.expect(UInt8(ascii: ":"))
            found.append(Json.Member(name, try reader.value()))
        }
        return found
    }

    private mutating func each(until end: UInt8, item: (inout JsonReader) throws -> Void) throws {
        depth += 1
        if depth > JsonReader.deepest { throw fail("it is nested too deep") }
        at += 1
        space()
        if next != end {
            while true {
                space()
                try item(&self)
                space()
                if next == end { break }
                try expect(UInt8(ascii: ","))
            }
        }
        at += 1
        depth -= 1
    }

    private mutating func string() throws -> String {
        try expect(UInt8(ascii: "\""))
        var out: [UInt8] = []
        while let byte = next {
            at += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let text = String(validating: out, as: UTF8.self) else { throw fail("a text is no UTF-8") }
                return text
            case UInt8(ascii: "\\"): try out.append(contentsOf: String(escaped()).utf8)
            case ..<0x20: throw fail("a control character stands in a string")
            default: out.append(byte)
            }
        }
        throw fail("it ends in a string")
    }

    /// Half of a pair that stands alone is no character: U+FFFD.
    private mutating func escaped() throws -> Unicode.Scalar {
        guard let byte = next else { throw fail("it ends in a string") }
        at += 1
        switch byte {
        case UInt8(ascii: "u"):
            let unit = try unit()
            guard (0xD800...0xDBFF).contains(unit), at + 6 <= bytes.count, bytes[at] == UInt8(ascii: "\\"),
                bytes[at + 1] == UInt8(ascii: "u")
            else { return Unicode.Scalar(unit) ?? "\u{FFFD}" }
            let back = at
            at += 2
            let low = try self.unit()
            if (0xDC00...0xDFFF).contains(low) {
                return Unicode.Scalar(0x10000 + (unit - 0xD800) << 10 + (low - 0xDC00)) ?? "\u{FFFD}"
            }
            at = back
            return "\u{FFFD}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{c}"
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return Unicode.Scalar(byte)
        default: throw fail("unexpected \\\(Unicode.Scalar(byte))")
        }
    }

    private mutating func unit() throws -> UInt32 {
        var value: UInt32 = 0
        for _ in 0..<4 {
            guard let digit = next.flatMap({ Character(Unicode.Scalar($0)).hexDigitValue }), next! < 0x80 else {
                throw fail("\\u is followed by no character's four digits")
            }
            value = value << 4 + UInt32(digit)
            at += 1
        }
        return value
    }

    private mutating func number() throws -> Json {
        let start = at
        if next == UInt8(ascii: "-") { at += 1 }
        let first = next
        let digits = skipDigits()
        guard digits > 0, digits == 1 || first != UInt8(ascii: "0") else { throw unexpected(start) }
        var whole = true
        if next == UInt8(ascii: ".") {
            at += 1
            whole = false
            if skipDigits() == 0 { throw unexpected(start) }
        }
        if next == UInt8(ascii: "e") || next == UInt8(ascii: "E") {
            at += 1
            whole = false
            if next == UInt8(ascii: "+") || next == UInt8(ascii: "-") { at += 1 }
            if skipDigits() == 0 { throw unexpected(start) }
        }
        let text = String(decoding: bytes[start..<at], as: UTF8.self)
        if whole, let value = Int(text) { return .whole(value) }
        guard let value = Double(text) else { throw unexpected(start) }
        return .number(value)
    }

    private mutating func skipDigits() -> Int {
        let start = at
        while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { at += 1 }
        return at - start
    }

    private mutating func word(_ word: String, _ value: Json) throws -> Json {
        guard bytes[at...].starts(with: word.utf8) else { throw unexpected(at) }
        at += word.utf8.count
        return value
    }

    private mutating func expect(_ byte: UInt8) throws {
        if next != byte { throw fail("\(Unicode.Scalar(byte)) expected") }
        at += 1
    }

    private mutating func space() {
        while let byte = next, byte == 0x20 || byte == 0x09 || byte == 0x0A || byte == 0x0D { at += 1 }
    }

    private func unexpected(_ place: Int) -> JsonError {
        JsonError(reason: "at byte \(place): unexpected \(Unicode.Scalar(bytes[place]))")
    }

    private func fail(_ why: String) -> JsonError { JsonError(reason: "at byte \(at): \(why)") }
}
