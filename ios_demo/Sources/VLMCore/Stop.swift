// Stop: ends work from another thread, within what is being computed.
import Foundation

public final class Stop: @unchecked Sendable {  // all is behind the lock
    private let lock = NSLock()
    private var hooks: [Int: () -> Void] = [:]
    private var next = 0
    private var ended = false

    public init() {}

    public var asked: Bool { lock.withLock { ended } }

    public func now() {
        lock.withLock {
            ended = true
            for hook in hooks.values { hook() }
        }
    }

    /// Throws EdgeError once the end was asked for.
    public func check() throws {
        if asked { throw EdgeError.stopped }
    }

    /// `end` is called where the end is asked for while `work` goes on, and never after.
    func during<T>(end: @escaping () -> Void, _ work: () throws -> T) throws -> T {
        let hook = try lock.withLock {
            if ended { throw EdgeError.stopped }
            next += 1
            hooks[next] = end
            return next
        }
        defer { lock.withLock { hooks[hook] = nil } }
        return try work()
    }
}
