// Latest: a place for one thing, where a newer one replaces what nobody took. What lies behind a camera.
import Foundation

public final class Latest<Value: Sendable>: @unchecked Sendable {  // all is behind the lock
    private let lock = NSLock()
    private var value: Value?
    private var waiting: CheckedContinuation<Value?, Never>?
    private var ended = false
    private var passed = 0

    public init() {}

    /// Those that were replaced before anyone took them.
    public var dropped: Int { lock.withLock { passed } }

    public func put(_ new: Value) {
        let taker = lock.withLock { () -> CheckedContinuation<Value?, Never>? in
            if ended { return nil }
            if let taker = waiting {
                waiting = nil
                return taker
            }
            passed += value == nil ? 0 : 1
            value = new
            return nil
        }
        taker?.resume(returning: new)
    }

    /// The newest, once there is one; nil after the end, or when another asks.
    public func take() async -> Value? {
        await withCheckedContinuation { taker in
            var before: CheckedContinuation<Value?, Never>?
            let found = lock.withLock { () -> Value?? in
                if ended { return .some(nil) }
                if let value {
                    self.value = nil
                    return value
                }
                (before, waiting) = (waiting, taker)
                return nil
            }
            before?.resume(returning: nil)
            if let found { taker.resume(returning: found) }
        }
    }

    public func end() {
        let taker = lock.withLock { () -> CheckedContinuation<Value?, Never>? in
            ended = true
            value = nil
            defer { waiting = nil }
            return waiting
        }
        taker?.resume(returning: nil)
    }
}
