// vlm BUNDLE IMAGE QUESTION…: answers on a command line, and proves the bundle; what an app does, without one.
import Foundation
import VLMCore

func fail(_ text: String) -> Never {
    FileHandle.standardError.write(Data((text + "\n").utf8))
    exit(1)
}

/// Core ML where all parts are for it, and the system has it.
func engine(_ bundle: ModelBundle) -> any Engine {
    #if canImport(CoreML)
        let cache = FileManager.default.temporaryDirectory.appendingPathComponent("edge-vlm-compiled")
        if bundle.manifest.parts.allSatisfy({ $0.format == "coreml" }) { return CoreMLEngine(.all, cache: cache) }
    #endif
    return OrtEngine()
}

let arguments = CommandLine.arguments.dropFirst()
guard arguments.count >= 3 else {
    fail("usage: vlm BUNDLE IMAGE QUESTION…; of a folder on this machine, and a picture")
}
let (folder, image, questions) = (arguments[1], arguments[2], arguments[3...])

do {
    let bundle = try ModelBundle(URL(fileURLWithPath: folder))
    let picture = try readPicture(URL(fileURLWithPath: image))
    let threads = min(ProcessInfo.processInfo.activeProcessorCount, 4)
    let assistant = try await Assistant.open(bundle, engine: engine(bundle), settings: Settings(threads: threads))
    await assistant.look(at: picture)
    for question in questions {
        for try await event in assistant.stream(question) {
            switch event {
            case .text(let piece): FileHandle.standardOutput.write(Data(piece.utf8))
            case .done(let answer):
                FileHandle.standardOutput.write(Data("\n".utf8))
                let rate = Int(answer.timings.tokensPerSecond)
                let told = "\(answer.promptTokens) tokens in · \(answer.ids.count) tokens out, \(rate)/s\n"
                FileHandle.standardError.write(Data(told.utf8))
            }
        }
    }
    FileHandle.standardError.write(Data((try await assistant.verify().sentence + "\n").utf8))
} catch let error as EdgeError {
    fail("error: \(error.message)" + (error.hint.map { "; hint: \($0)" } ?? ""))
} catch {
    fail("error: \(error)")
}
