// Benchmark: rows as `edge bench -o json` writes them, under its names, for `edge bench --compare` to read.
import Foundation

struct Bench {
    private let session: Session
    private let golden: Golden
    private let picture: Picture?
    private let repetitions: Int
    private let stop: Stop
    private var facts: [Json.Member]

    private static let schema = 1
    private static let prompted = 190
    private static let generated = 64

    /// `device` and `version` are for people. Throws EdgeError.
    init(
        _ session: Session,
        engine: String,
        settings: Settings,
        device: String,
        version: String,
        repetitions: Int = 5,
        stop: Stop = Stop()
    ) throws {
        let manifest = session.bundle.manifest
        (self.session, self.repetitions, self.stop) = (session, repetitions, stop)
        golden = try Golden(session.bundle.file(manifest.golden))
        picture = manifest.sees ? golden.picture : nil
        let schemes = manifest.parts.map(\.scheme).joined(separator: "+")
        facts = [
            Json.Member("schema", .whole(Bench.schema)),
            Json.Member("build_commit", .text("edge-vlm ios \(version)")),
            Json.Member("cpu_info", .text(device)),
            Json.Member("device", .text(device)),
            Json.Member("model_filename", .text(session.bundle.folder.lastPathComponent)),
            Json.Member("model_type", .text("\(manifest.name) \(schemes)")),
            Json.Member("model_size", .whole(manifest.parts.flatMap(\.files).reduce(0) { $0 + $1.bytes })),
            Json.Member("recipe", .text(manifest.recipe)),
            Json.Member("backends", .text(engine)),
            Json.Member("n_threads", .whole(settings.threads)),
            Json.Member("context", .whole(session.model.context)),
        ]
    }

    static func json(_ rows: [Json]) -> String { "[\n" + rows.map(\.written).joined(separator: ",\n") + "\n]\n" }

    /// All rows. `progress` is told what is measured. Throws EdgeError.
    mutating func rows(progress: (String) -> Void = { _ in }) throws -> [Json] {
        let report = try verify(session, stop: stop)
        if !report.rows.allSatisfy(\.finite) { throw EdgeError.engine(report.sentence, hint: "another bundle") }
        facts.append(Json.Member("agreement_cosine", .number(report.error("prefill", "fp32")["cosine"] ?? 0)))
        facts.append(Json.Member("agreement_tokens", .number(report.error("tokens", "fp32")["tokens"] ?? 0)))
        var rows: [Json] = []
        if let peak = Machine.peakMemory() {
            rows.append(row("peak memory", 0, 0, [Json.Member("peak_bytes", .whole(peak))]))
        }
        for measure in [seeing, prefilling, generating, firstToken] {
            progress("\(rows.count) measured")
            rows += try measure()
        }
        return rows
    }

    private func seeing() throws -> [Json] {
        guard let picture else { return [] }
        return [
            try timed("preprocess") { _ = session.views(picture) },
            try timed("vision encode") { _ = try session.model.see(golden.pixelValues, stop) },
        ]
    }

    private func prefilling() throws -> [Json] {
        let count = min(Bench.prompted, session.model.context)
        let prompt = self.prompt(count)
        return [
            try timed("pp\(count)", prompt: count) {
                try session.model.rewind(0)
                _ = try session.model.extend(prompt, stop)
            }
        ]
    }

    private func generating() throws -> [Json] {
        let count = min(Bench.generated, session.model.context)
        return [
            try timed("tg\(count)", generated: count) {
                try session.model.rewind(0)
                var id = session.bundle.manifest.prompt.bosId ?? 0
                for _ in 0..<count { id = argmax(try session.model.extend([.tokens([id])], stop)) }
            }
        ]
    }

    private func firstToken() throws -> [Json] {
        let question = session.bundle.manifest.goldenQuestion
        return [
            try timed("first token") {
                session.forget()
                var chat = Chat(picture)
                _ = try chat.ask(question, of: session, Ask(maxTokens: 1), stop: stop)
            }
        ]
    }

    /// The golden prompt's first positions; of one that is shorter, its last text again and again.
    private func prompt(_ count: Int) -> [Segment] {
        let width = session.bundle.manifest.decoder.hidden
        let embeds = golden.fp32.imageEmbeds
        let image = Segment.rows(ImageRows(values: embeds, key: "golden", count: embeds.count / width))
        let whole = session.bundle.manifest.goldenSegments.map { $0.map(Segment.tokens) ?? image }
        var found: [Segment] = []
        var left = count
        while left > 0 {
            let segment = whole[min(found.count, whole.count - 1)]
            let taken = min(left, segment.count)
            left -= taken
            switch segment {
            case .tokens(let ids): found.append(.tokens(Array(ids.prefix(taken))))
            case .rows(let rows):
                let values = Array(rows.values.prefix(taken * width))
                found.append(.rows(ImageRows(values: values, key: rows.key, count: taken)))
            }
        }
        return found
    }

    /// One run that is not counted, then the repetitions; their row.
    private func timed(
        _ test: String,
        prompt: Int = 0,
        generated: Int = 0,
        _ work: () throws -> Void
    ) throws -> Json {
        try work()
        let samples = try (0..<repetitions).map { _ in
            try stop.check()
            let start = DispatchTime.now()
            try work()
            return 1e6 * milliseconds(since: start)
        }
        var measured = [Json.Member("test_time", .text(ISO8601DateFormatter().string(from: Date())))]
        measured += spread("ns", samples) { .whole(Int($0.rounded())) }
        let tokens = Double(prompt + generated)
        if tokens > 0 { measured += spread("ts", samples.map { 1e9 * tokens / $0 }) { .number($0) } }
        return row(test, prompt, generated, measured)
    }

    private func row(_ test: String, _ prompt: Int, _ generated: Int, _ measured: [Json.Member]) -> Json {
        let counts = [("n_prompt", prompt), ("n_gen", generated), ("n_depth", 0)]
        return .object(
            [Json.Member("test", .text(test))] + facts + counts.map { Json.Member($0, .whole($1)) } + measured)
    }

    private func spread(_ unit: String, _ samples: [Double], _ json: (Double) -> Json) -> [Json.Member] {
        let mean = samples.reduce(0, +) / Double(samples.count)
        var found = [Json.Member("avg_\(unit)", json(mean)), Json.Member("samples_\(unit)", .list(samples.map(json)))]
        if samples.count > 1 {
            let squares = samples.reduce(0) { $0 + ($1 - mean) * ($1 - mean) }
            found.append(Json.Member("stddev_\(unit)", json((squares / Double(samples.count - 1)).squareRoot())))
        }
        return found
    }
}
