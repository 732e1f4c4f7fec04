// Decoder for models that keep the KV cache in states which their functions share: what of it needs no Core ML.

/// Two functions: `prefill` takes any number of rows, `decode` one.
protocol StatefulFunctions: AnyObject {
    /// Rows f32 `[1, new, hidden]` and a mask f32 `[1, 1, new, total]`; the logits of the last row. Throws EdgeError.
    func run(_ function: String, rows: [Float], mask: [Float], new: Int, total: Int) throws -> [Float]
}

struct StatefulDecoder {
    static let prefill = "prefill"
    static let decode = "decode"
    let context: Int
    private(set) var position = 0
    private let functions: any StatefulFunctions
    private let hidden: Int
    private let vocab: Int
    private let masked: Float

    /// `masked`: what no attention is left of.
    init(_ functions: any StatefulFunctions, _ spec: DecoderSpec, context: Int, masked: Float) {
        (self.functions, self.context, self.masked) = (functions, context, masked)
        (hidden, vocab) = (spec.hidden, spec.vocab)
    }

    /// Appends rows `[S, hidden]`; the logits of the last. Throws EdgeError, and holds then what it held before.
    mutating func extend(_ rows: [Float], _ stop: Stop) throws -> [Float] {
        let new = rows.count / hidden
        let total = position + new
        if new == 0 || rows.count != new * hidden {
            throw EdgeError.engine("\(rows.count) numbers are no rows of \(hidden)")
        }
        if total > context { throw EdgeError.context(needed: total, held: context) }
        try stop.check()
        let function = new == 1 ? StatefulDecoder.decode : StatefulDecoder.prefill
        let logits = try functions.run(function, rows: rows, mask: mask(new), new: new, total: total)
        if logits.count != vocab { throw EdgeError.engine("the decoder gave \(logits.count) logits, not \(vocab)") }
        position = total
        return logits
    }

    mutating func rewind(_ to: Int) throws {
        if !(0...position).contains(to) { throw EdgeError.engine("cannot rewind to \(to) from \(position)") }
        position = to  // what lies behind it is masked, and written over
    }

    /// `[new, position + new]`: a new position sees those before it, and itself.
    private func mask(_ new: Int) -> [Float] {
        let total = position + new
        var mask = [Float](repeating: 0, count: new * total)
        for row in 0..<new {
            for column in (position + row + 1)..<max(total, position + row + 1) { mask[row * total + column] = masked }
        }
        return mask
    }
}
