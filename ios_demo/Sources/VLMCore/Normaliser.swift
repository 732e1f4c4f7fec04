// Normalisers of a tokenizer.json: what becomes of a text before it is cut.
import Foundation

struct Normaliser: Sendable {
    private enum Step: Sendable {
        case prepend(Bytes)
        case replace(Bytes, Bytes)
        case nfc
    }

    private let own: [Step]

    init(_ told: Json?) throws { own = try steps(told, "normalizers").map(Normaliser.step) }

    func apply(_ text: Bytes) -> Bytes {
        own.reduce(text) { made, step in
            switch step {
            case .prepend(let prefix): made.isEmpty ? made : prefix + made
            case .replace(let old, let new): made.replacing(old, with: new)
            case .nfc: Bytes(made.text.precomposedStringWithCanonicalMapping)
            }
        }
    }

    private static func step(_ told: Json) throws -> Step {
        switch told["type"]?.text {
        case "Prepend":
            if let prefix = told["prepend"]?.text { return .prepend(Bytes(prefix)) }
        case "Replace":
            if let old = told["pattern"]?["String"]?.text, let new = told["content"]?.text {
                return .replace(Bytes(old), Bytes(new))
            }
        case "NFC": return .nfc
        default: break
        }
        throw refused("normalises by \(told.written)")
    }
}
