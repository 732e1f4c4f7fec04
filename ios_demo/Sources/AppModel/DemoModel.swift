// What the screens show, and what they can ask for: bundles, one that is open, a picture and what was said about it.
import Foundation
import Observation
import VLMCore

@MainActor
@Observable
public final class DemoModel {
    public private(set) var bundles: [ModelBundle] = []
    public private(set) var opened: ModelBundle?
    public private(set) var choice: EngineChoice?
    public private(set) var picture: Picture?
    public private(set) var exchanges: [Exchange] = []
    public private(set) var question: String?
    public private(set) var answer = ""
    public private(set) var timings = ""
    public private(set) var problem: String?
    public private(set) var busy: String?
    public private(set) var report: Report?
    public private(set) var benchmark: String?

    @ObservationIgnored private var assistant: Assistant?
    @ObservationIgnored private var work: Task<Void, Never>?
    @ObservationIgnored private var started = 0
    @ObservationIgnored private let store: Store?
    @ObservationIgnored private let own: URL?

    /// `root`: where imported bundles lie; `own`: the one that came with the app.
    public init(root: URL, own: URL? = Bundle.main.url(forResource: "bundle", withExtension: nil)) {
        setenv("ORT_DISABLE_TELEMETRY", "1", 1)  // before anything of the library is touched
        self.own = own
        do {
            store = try Store(root)
        } catch {
            store = nil
            problem = DemoModel.sentence(error)
        }
        reload()
        if let first = bundles.first { open(first, EngineChoice.able(first).first) }
    }

    /// Those that came with the app, and those that were imported.
    public func reload() {
        bundles = [own.flatMap { try? ModelBundle($0) }].compactMap { $0 } + (store?.bundles ?? [])
    }

    public func open(_ bundle: ModelBundle, _ choice: EngineChoice?) {
        guard let choice else {
            problem = "No engine of this app opens \(bundle.manifest.name)."
            return
        }
        (assistant, opened, report, benchmark) = (nil, bundle, nil, nil)
        self.choice = choice
        exchanges = []
        let threads = min(max(ProcessInfo.processInfo.activeProcessorCount / 2, 1), 4)
        let picture = picture
        start("opening \(bundle.manifest.name)") {
            let made = try await Assistant.open(bundle, engine: choice.engine, settings: Settings(threads: threads))
            await made.look(at: picture)
            self.assistant = made
        }
    }

    /// Of Files: a folder that a person chose, or a zip.
    public func add(_ chosen: URL) {
        guard let store else { return }
        let stop = Stop()
        start("importing \(chosen.lastPathComponent)", stop) {
            let engines = EngineChoice.allCases.map(\.engine)
            let made = try await Task.detached {
                #if canImport(UIKit)
                    let granted = chosen.startAccessingSecurityScopedResource()
                    defer { if granted { chosen.stopAccessingSecurityScopedResource() } }
                #endif
                if chosen.pathExtension.lowercased() != "zip" {
                    return try store.add(chosen.lastPathComponent, from: chosen, engines: engines, stop: stop)
                }
                let name = chosen.deletingPathExtension().lastPathComponent
                return try store.add(name, fromZip: chosen, engines: engines, stop: stop)
            }.value
            self.reload()
            self.open(made, EngineChoice.able(made).first)
        }
    }

    public func look(at picture: Picture) {
        self.picture = picture
        (exchanges, question, answer, timings) = ([], nil, "", "")
        start("looking") { await self.assistant?.look(at: picture) }
    }

    /// A photo is chosen: `read` gives its file, or nil; `decode` makes the picture of it.
    public func look(
        at read: @escaping @Sendable () async throws -> Data?,
        decode: @escaping @Sendable (Data) throws -> Picture
    ) {
        start("reading the photo") {
            let made = try await Task.detached { try await read().map(decode) }.value
            if let made { self.look(at: made) }
        }
    }

    public func ask(_ question: String) {
        guard let assistant else { return }
        (self.question, answer, timings) = (question, "", "")
        start("answering") {
            for try await event in assistant.stream(question) {
                switch event {
                case .text(let piece): self.answer += piece
                case .done(let done): self.timings = DemoModel.told(done)
                }
            }
            self.exchanges = await assistant.exchanges
            self.question = nil
        }
    }

    public func stop() { work?.cancel() }

    public func verify() {
        let (assistant, stop) = (assistant, Stop())
        start("proving", stop) { self.report = try await assistant?.verify(stop: stop) }
    }

    public func bench() {
        let (assistant, stop) = (assistant, Stop())
        let device = "\(Machine.name), \(ProcessInfo.processInfo.operatingSystemVersionString)"
        let version = Bundle.main.infoDictionary?["CFBundleShortVersionString"] as? String ?? "0"
        start("measuring", stop) {
            self.benchmark = try await assistant?.benchmark(device: device, version: version, stop: stop)
        }
    }

    /// Answers about the newest frame, again and again, until the camera or its screen ends.
    public func watch(_ frames: Latest<Picture>, _ question: String) async {
        let stop = Stop()
        await withTaskCancellationHandler {
            while let frame = await frames.take(), let assistant, !Task.isCancelled {
                picture = frame
                do {
                    let found = try await assistant.glance(frame, question, Ask(maxTokens: 24), stop: stop)
                    answer = found.text
                    timings = DemoModel.told(found) + " · \(frames.dropped) frames passed over"
                } catch {
                    problem = DemoModel.sentence(error)
                    return
                }
            }
        } onCancel: {
            stop.now()
        }
    }

    /// When the system is short of memory.
    public func trim() async { await assistant?.trim() }

    private func start(_ name: String, _ stop: Stop? = nil, _ work: @escaping @MainActor () async throws -> Void) {
        self.work?.cancel()
        (busy, problem) = (name, nil)
        started += 1
        let own = started
        self.work = Task {
            var found: String?
            do {
                try await withTaskCancellationHandler(operation: work) { stop?.now() }
            } catch {
                found = DemoModel.sentence(error)
            }
            if own == started { (busy, problem) = (nil, found) }  // else something newer goes on
        }
    }

    /// Nil of what someone stopped.
    private static func sentence(_ error: any Error) -> String? {
        if let own = error as? EdgeError { return own.kind == .stopped ? nil : own.sentence }
        return error is CancellationError ? nil : error.localizedDescription
    }

    private static func told(_ answer: Answer) -> String {
        let first = (answer.timings.firstToken / 10).rounded() / 100
        let memory = Machine.memory().map { " · \($0 >> 20) MB" } ?? ""
        return
            "first word after \(first) s · \(answer.ids.count) tokens, \(Int(answer.timings.tokensPerSecond))/s\(memory)"
    }
}
