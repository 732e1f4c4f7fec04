// Assistant: a session that an app may use from anywhere. It computes on a thread of its own.
import Foundation

/// What becomes known of an answer.
public enum Event: Sendable {
    case text(String)
    case done(Answer)
}

public actor Assistant {
    public nonisolated let bundle: ModelBundle
    public nonisolated let engine: any Engine
    public nonisolated let settings: Settings
    private nonisolated let thread = ComputeThread()
    private var session: Session?
    private var chat = Chat(nil)

    public nonisolated var unownedExecutor: UnownedSerialExecutor { thread.asUnownedSerialExecutor() }

    private init(_ bundle: ModelBundle, _ engine: any Engine, _ settings: Settings) {
        (self.bundle, self.engine, self.settings) = (bundle, engine, settings)
    }

    /// Hashes the files, so that a damaged one never reaches the engine, lets that prepare them, and opens the bundle.
    /// Throws EdgeError, also where the memory that the system has to give will not do.
    public static func open(
        _ bundle: ModelBundle,
        engine: any Engine,
        settings: Settings,
        stop: Stop = Stop(),
        progress: @escaping @Sendable (Double) -> Void = { _ in }
    ) async throws -> Assistant {
        let made = Assistant(bundle, engine, settings)
        try await made.check(stop, progress)
        try await engine.prepare(bundle)
        try await made.open()
        return made
    }

    private func check(_ stop: Stop, _ progress: (Double) -> Void) throws {
        try engine.require(bundle, settings, free: Machine.availableMemory())
        try bundle.check {
            try stop.check()
            progress($0)
        }
    }

    private func open() throws { session = try Session(bundle, engine, settings) }

    /// Another picture, or none: a new conversation. `past`: what was said before about it, by a process that ended.
    public func look(at picture: Picture?, past: [Exchange] = []) { chat = Chat(picture, past: past) }

    public var exchanges: [Exchange] { chat.exchanges }

    /// The answer as it is made. Who stops iterating, or whose task is cancelled, ends the computing within a run of
    /// the library. The stream throws EdgeError.
    public nonisolated func stream(_ question: String, _ ask: Ask = Ask()) -> AsyncThrowingStream<Event, any Error> {
        AsyncThrowingStream { events in
            let stop = Stop()
            events.onTermination = { _ in stop.now() }
            Task {
                do {
                    let answer = try await self.answer(question, ask, stop) { events.yield(.text($0)) }
                    events.yield(.done(answer))
                    events.finish()
                } catch {
                    events.finish(throwing: error)
                }
            }
        }
    }

    private func answer(
        _ question: String,
        _ ask: Ask,
        _ stop: Stop,
        _ emit: (String) -> Void
    ) throws -> Answer {
        try chat.ask(question, of: opened(), ask, stop: stop, emit: emit)
    }

    /// One answer about one picture that is in no conversation: for a live camera.
    public func glance(_ picture: Picture, _ question: String, _ ask: Ask, stop: Stop) throws -> Answer {
        var own = Chat(picture)
        return try own.ask(question, of: opened(), ask, stop: stop)
    }

    /// Replays the golden sample on this device. Throws EdgeError.
    public func verify(stop: Stop = Stop()) throws -> Report { try VLMCore.verify(opened(), stop: stop) }

    /// Rows as `edge bench -o json` writes them. Throws EdgeError.
    public func benchmark(
        device: String,
        version: String,
        stop: Stop = Stop(),
        progress: @Sendable (String) -> Void = { _ in }
    ) throws -> String {
        var bench = try Bench(
            opened(), engine: engine.name, settings: settings, device: device, version: version, stop: stop)
        return Bench.json(try bench.rows(progress: progress))
    }

    /// Lets go what can be computed again, when the system is short of memory.
    public func trim() { session?.trim() }

    private func opened() throws -> Session {
        guard let session else { throw EdgeError.usage("the bundle is not open") }
        return session
    }
}

/// Long computing blocks its thread: not one of those that all tasks share.
private final class ComputeThread: SerialExecutor {
    private let queue = DispatchQueue(label: "dev.edgevlm.compute", qos: .userInitiated)

    func enqueue(_ job: consuming ExecutorJob) {
        let own = UnownedJob(job)
        queue.async { own.runSynchronously(on: self.asUnownedSerialExecutor()) }
    }
}
