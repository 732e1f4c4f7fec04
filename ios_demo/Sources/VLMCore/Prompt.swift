// A conversation becomes segments: pieces of the template and what is said, tokenised around the images.

/// What a decoder sees of an image: float32 `[count, hidden]`; `key` is equal for equal images.
public struct ImageRows: Sendable {
    let values: [Float]
    let key: String
    let count: Int
}

/// What the decoder sees of an image: the rows of each view, rows × columns of tiles and the whole, or that alone.
public struct Seen: Sendable {
    let views: [ImageRows]
    var rows = 0
    var columns = 0
}

/// What a decoder is fed.
enum Segment: Sendable {
    case tokens([Int])
    case rows(ImageRows)

    var count: Int {
        switch self {
        case .tokens(let ids): ids.count
        case .rows(let rows): rows.count
        }
    }

    var ids: [Int]? { if case .tokens(let ids) = self { ids } else { nil } }
}

/// A question about images, which stand before it, and its answer once there is one.
struct Turn {
    var question: String
    var images: [Seen] = []
    var answer: String?
    /// As the model wrote it: goes before `answer`, whose ids may be others.
    var answerIds: [Int]?
}

/// `system` nil takes the model's own; "" leaves it out. Throws EdgeError.
func segments(_ spec: PromptSpec, _ tokenizer: Tokenizer, _ turns: [Turn], system: String? = nil) throws -> [Segment] {
    var assembly = Assembly(spec, tokenizer)
    try assembly.conversation(turns, told: system)
    return assembly.finished()
}

private struct Assembly {
    private let spec: PromptSpec
    private let tokenizer: Tokenizer
    private var found: [Segment] = []
    private var ids: [Int] = []
    private var text = ""
    private var after: String?  // what the text that is being collected stands behind

    init(_ spec: PromptSpec, _ tokenizer: Tokenizer) {
        (self.spec, self.tokenizer) = (spec, tokenizer)
        if let bos = spec.bosId {
            ids = [bos]
            after = "bos"
        }
    }

    mutating func conversation(_ turns: [Turn], told: String?) throws {
        if let told, !told.isEmpty, spec.question.afterSystem == nil {
            throw EdgeError.usage(
                "the model's prompt has no place for a system message", hint: "say it in the question")
        }
        let system = told ?? spec.defaultSystem
        for (number, turn) in turns.enumerated() {
            // Images stand first in a turn: wherever `image_question_when` wants one, it is.
            let asked = (turn.images.isEmpty ? nil : spec.imageQuestion) ?? spec.question
            let first = (system.isEmpty ? nil : asked.afterSystem) ?? asked.first
            fill(number > 0 ? asked.later : first, turn, system)
            if let own = turn.answerIds {
                fill(spec.generation, turn, system)
                add(own)
                add(spec.endIds)
            } else if turn.answer != nil {
                fill(spec.answer, turn, system)
                add(spec.endIds)
            } else if number == turns.count - 1 {
                fill(spec.generation, turn, system)
            } else {
                throw EdgeError.usage("turn \(number + 1) of \(turns.count) has no answer")
            }
        }
    }

    mutating func finished() -> [Segment] {
        endText()
        endIds()
        return found
    }

    private mutating func fill(_ pieces: [Piece], _ turn: Turn, _ system: String) {
        for piece in pieces {
            switch piece {
            case .text(let text): self.text += text
            case .ids(let ids): add(ids)
            case .slot(.system, let trim): text += trimmed(system, trim)
            case .slot(.answer, let trim): text += trimmed(turn.answer ?? "", trim)
            case .slot(_, let trim):
                for image in turn.images { place(image) }
                // Images stand to the left of the question: only without one does that side lose its space.
                text += trimmed(turn.question, turn.images.isEmpty ? trim : right(trim))
            }
        }
    }

    private mutating func place(_ image: Seen) {
        var views = image.views.makeIterator()
        let pieces = image.rows == 0 ? spec.image : spec.views?.of(image.rows, image.columns) ?? spec.image
        for piece in pieces {
            switch piece {
            case .text(let text): self.text += text
            case .ids(let ids): add(ids)
            case .slot:
                endText()
                endIds()
                if let view = views.next() { found.append(.rows(view)) }
                after = "image"
            }
        }
    }

    private mutating func add(_ more: [Int]) {
        if more.isEmpty { return }
        endText()
        ids += more
        after = "ids"
    }

    private mutating func endText() {
        if text.isEmpty { return }
        ids += tokenizer.encode(text, start: after.map(spec.restarts.contains) ?? true)
        text = ""
    }

    private mutating func endIds() {
        if !ids.isEmpty { found.append(.tokens(ids)) }
        ids = []
    }
}

/// Of the sides, the right one.
private func right(_ trim: Trim) -> Trim { trim == .both || trim == .right ? .right : .none }

/// Python's `strip`: Unicode's white space, and the separators U+001C to U+001F.
private func isSpace(_ scalar: Unicode.Scalar) -> Bool {
    (0x1C...0x1F).contains(scalar.value) || scalar.properties.isWhitespace
}

private func trimmed(_ text: String, _ trim: Trim) -> String {
    var scalars = text.unicodeScalars[...]
    if trim == .left || trim == .both { scalars = scalars.drop(while: isSpace) }
    if trim == .right || trim == .both {
        while let last = scalars.last, isSpace(last) { scalars.removeLast() }
    }
    return String(scalars)
}
