// Verification: replays the golden sample on this device, stage by stage, and compares it with the reference.
import Foundation

/// One stage compared with one reference. A row without a tolerance tells what quantising costs.
public struct Row: Sendable {
    public let stage: String
    public let against: String
    public let error: [String: Double]
    public let tolerance: [String: Double]

    public var finite: Bool { error.values.allSatisfy(\.isFinite) }

    public var ok: Bool {
        finite
            && tolerance.allSatisfy { name, bound in
                error[name].map { name == "max_abs" ? $0 <= bound : $0 >= bound } ?? false
            }
    }

    var json: Json {
        .object([
            Json.Member("stage", .text(stage)), Json.Member("against", .text(against)),
            Json.Member("error", table(error)),
            Json.Member("tolerance", table(tolerance)), Json.Member("ok", .flag(ok)),
        ])
    }

    private func table(_ numbers: [String: Double]) -> Json {
        .object(numbers.sorted { $0.key < $1.key }.map { Json.Member($0.key, .number($0.value)) })
    }
}

public struct Report: Sendable {
    public let rows: [Row]

    public var ok: Bool { rows.allSatisfy(\.ok) }

    /// As `edge verify --json` writes it.
    public var json: Json {
        .object([Json.Member("ok", .flag(ok)), Json.Member("rows", .list(rows.map(\.json)))])
    }

    func error(_ stage: String, _ against: String) -> [String: Double] {
        rows.first { $0.stage == stage && $0.against == against }?.error ?? [:]
    }

    /// For the screen: the worst of what must hold.
    public var sentence: String {
        let bad = rows.filter { !$0.ok }
        if !bad.isEmpty {
            return "This device computes ANOTHER model: "
                + bad.map { "\($0.stage) \($0.error)" }.joined(separator: ", ")
        }
        let cosine = rows.filter { $0.against == "stored" }.compactMap { $0.error["cosine"] }.min() ?? 1
        return "This device computes the same model: cosine \(String(format: "%.6f", cosine))."
    }
}

private let exact = ["tokens": 1.0]
private let resized = ["max_abs": 1e-4]  // a resize is exact; what remains is float arithmetic

/// Throws EdgeError when a stage cannot run at all. Nothing that the session remembers is used, or spoilt.
func verify(_ session: Session, stop: Stop = Stop()) throws -> Report {
    let manifest = session.bundle.manifest
    let golden = try Golden(session.bundle.file(manifest.golden))
    let part = try manifest.part("decoder")
    let (logits, tokens) = try replay(session, golden, stop)
    let picture = try distance(pixels(golden.picture, manifest.image), golden.pixelValues)
    var rows = [
        Row(stage: "picture", against: "golden", error: picture, tolerance: resized),
        Row(stage: "prompt", against: "golden", error: ["tokens": try promptAgrees(session) ? 1 : 0], tolerance: exact),
    ]
    if manifest.sees {
        let embeds = try session.model.see(golden.pixelValues, stop)
        let bounds = try manifest.part("vision").bounds("max_abs", "cosine")
        let near = try nearest(embeds, golden, \.imageEmbeds).error
        let fp32 = try distance(embeds, golden.fp32.imageEmbeds)
        rows.append(Row(stage: "vision", against: "stored", error: near, tolerance: bounds))
        rows.append(Row(stage: "vision", against: "fp32", error: fp32, tolerance: [:]))
    }
    let near = try nearest(logits, golden, \.logits)
    let found = try share(tokens, near.outputs.tokens)
    let cost = try share(tokens, golden.fp32.tokens)
    let fp32 = try distance(logits, golden.fp32.logits)
    rows += [
        Row(stage: "prefill", against: "stored", error: near.error, tolerance: part.bounds("max_abs", "cosine")),
        Row(stage: "prefill", against: "fp32", error: fp32, tolerance: [:]),
        Row(stage: "tokens", against: "stored", error: ["tokens": found], tolerance: part.bounds("tokens")),
        Row(stage: "tokens", against: "fp32", error: ["tokens": cost], tolerance: [:]),
    ]
    return Report(rows: rows)
}

extension Part {
    fileprivate func bounds(_ names: String...) -> [String: Double] { tolerance.filter { names.contains($0.key) } }
}

/// The golden prompt's last logits, and greedy tokens, −1 from the first logits on that are not finite.
private func replay(_ session: Session, _ golden: Golden, _ stop: Stop) throws -> (logits: [Float], tokens: [Int]) {
    let manifest = session.bundle.manifest
    let embeds = golden.fp32.imageEmbeds
    let rows = ImageRows(values: embeds, key: "golden", count: embeds.count / manifest.decoder.hidden)
    session.forget()
    try session.model.rewind(0)
    let first = try session.model.extend(manifest.goldenSegments.map { $0.map(Segment.tokens) ?? .rows(rows) }, stop)
    var tokens = [Int](repeating: -1, count: golden.stored.tokens.count)
    var logits = first
    for place in tokens.indices where logits.allSatisfy(\.isFinite) {
        tokens[place] = argmax(logits)
        logits = try session.model.extend([.tokens([tokens[place]])], stop)
    }
    return (first, tokens)
}

private func promptAgrees(_ session: Session) throws -> Bool {
    let manifest = session.bundle.manifest
    let image = ImageRows(values: [], key: "golden", count: manifest.prompt.imageTokens)
    let turn = Turn(question: manifest.goldenQuestion, images: [Seen(views: [image])])
    return try segments(manifest.prompt, session.tokenizer, [turn]).map(\.ids) == manifest.goldenSegments
}

/// The distance to the outputs on the stored weights, and those outputs: of a part whose kernels round activations where
/// a processor has the instructions, and do not on another, the nearer ones.
private func nearest(
    _ found: [Float],
    _ golden: Golden,
    _ output: KeyPath<Outputs, [Float]>
) throws -> (error: [String: Double], outputs: Outputs) {
    let stored = try distance(found, golden.stored[keyPath: output])
    guard let rounded = golden.rounded else { return (stored, golden.stored) }
    let other = try distance(found, rounded[keyPath: output])
    return other["cosine"] ?? -1 > stored["cosine"] ?? -1 ? (other, rounded) : (stored, golden.stored)
}

/// Largest absolute difference, and cosine in double precision; NaN where either holds NaN or infinity.
func distance(_ found: [Float], _ reference: [Float]) throws -> [String: Double] {
    if found.count != reference.count {
        throw EdgeError.bundle(
            "the golden sample holds \(reference.count) numbers where the bundle gives \(found.count)")
    }
    var (most, product, a, b) = (0.0, 0.0, 0.0, 0.0)
    for (x, y) in zip(found, reference) {
        if !x.isFinite || !y.isFinite { return ["max_abs": .nan, "cosine": .nan] }
        let (x, y) = (Double(x), Double(y))
        most = max(most, abs(x - y))
        product += x * y
        a += x * x
        b += y * y
    }
    return ["max_abs": most, "cosine": a > 0 && b > 0 ? product / (a * b).squareRoot() : a == b ? 1 : 0]
}

private func share(_ found: [Int], _ reference: [Int]) throws -> Double {
    if found.count != reference.count {
        throw EdgeError.bundle("the golden sample holds \(reference.count) tokens, not \(found.count)")
    }
    if (found + reference).contains(where: { $0 < 0 }) { return .nan }
    return Double(zip(found, reference).filter { $0 == $1 }.count) / Double(found.count)
}
