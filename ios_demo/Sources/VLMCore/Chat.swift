// Chat: questions about the same image, each with what was said before.

/// A question and its answer, as they are kept when the process ends.
public struct Exchange: Sendable {
    public let question: String
    public let answer: String
    public let ids: [Int]?

    public init(question: String, answer: String, ids: [Int]?) {
        (self.question, self.answer, self.ids) = (question, answer, ids)
    }
}

struct Chat {
    let picture: Picture?
    /// Those that were answered to the end, of this process or one before it.
    private(set) var exchanges: [Exchange] = []

    init(_ picture: Picture?, past: [Exchange] = []) { (self.picture, exchanges) = (picture, past) }

    /// The answer; a question that fails, or is stopped, is not kept. Throws EdgeError.
    mutating func ask(
        _ question: String,
        of session: Session,
        _ ask: Ask = Ask(),
        stop: Stop = Stop(),
        emit: (String) -> Void = { _ in }
    ) throws -> Answer {
        let times = ImageTimes()
        let rows = try picture.map { [try session.encode($0, stop: stop, times: times)] } ?? []
        var turns = exchanges.map { Turn(question: $0.question, answer: $0.answer, answerIds: $0.ids) }
        turns.append(Turn(question: question))
        turns[0].images = rows
        let answer = try session.answer(turns, ask: ask, stop: stop, times: times, emit: emit)
        // As the model wrote it, so that the cache holds it; but not with the stop string that ended it.
        let whole = same(session.tokenizer.decode(answer.ids), answer.text)
        exchanges.append(Exchange(question: question, answer: answer.text, ids: whole ? answer.ids : nil))
        return answer
    }
}
