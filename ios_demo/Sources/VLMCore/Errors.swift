// What goes wrong, as sentences that a screen can show.
import Foundation

/// What failed, with the value, and why; `hint` is what mends it.
public struct EdgeError: LocalizedError, Sendable, CustomStringConvertible {
    public enum Kind: Sendable {
        /// A bundle that is missing, damaged, newer than this reader, or unsafe.
        case bundle
        /// A picture that cannot be read.
        case image
        /// A call that cannot be carried out as given.
        case usage
        /// An engine that refuses a part, or fails while it runs.
        case engine
        /// More positions than the context holds.
        case context
        /// Someone asked for the end: no failure.
        case stopped
    }

    public let kind: Kind
    public let message: String
    public let hint: String?

    public var description: String { message }
    public var errorDescription: String? { sentence }

    /// For the screen.
    public var sentence: String { hint.map { "\(message). Try: \($0)." } ?? "\(message)." }

    static let again = "copy or export the bundle again"

    static func bundle(_ message: String, hint: String? = again) -> EdgeError {
        EdgeError(kind: .bundle, message: message, hint: hint)
    }

    public static func image(_ message: String, hint: String? = nil) -> EdgeError {
        EdgeError(kind: .image, message: message, hint: hint)
    }

    public static func usage(_ message: String, hint: String? = nil) -> EdgeError {
        EdgeError(kind: .usage, message: message, hint: hint)
    }

    public static func engine(_ message: String, hint: String? = nil) -> EdgeError {
        EdgeError(kind: .engine, message: message, hint: hint)
    }

    static func context(needed: Int, held: Int) -> EdgeError {
        EdgeError(
            kind: .context, message: "the prompt needs \(needed) positions, and the context holds \(held)",
            hint: "ask something shorter")
    }

    static let stopped = EdgeError(kind: .stopped, message: "stopped", hint: nil)
}
