// What computes, as it can be chosen.
import Foundation
import VLMCore

public enum EngineChoice: String, CaseIterable, Identifiable, Sendable {
    case onnxruntime = "ONNX Runtime"
    #if canImport(CoreML)
        case coreml = "Core ML"
        case coremlProcessor = "Core ML, processor"
        case coremlGraphics = "Core ML, graphics"
        case coremlNeural = "Core ML, neural engine"
    #endif

    public var id: String { rawValue }

    public var engine: any Engine {
        switch self {
        case .onnxruntime: OrtEngine()
        #if canImport(CoreML)
            case .coreml: CoreMLEngine(.all, cache: EngineChoice.cache)
            case .coremlProcessor: CoreMLEngine(.cpu, cache: EngineChoice.cache)
            case .coremlGraphics: CoreMLEngine(.gpu, cache: EngineChoice.cache)
            case .coremlNeural: CoreMLEngine(.ane, cache: EngineChoice.cache)
        #endif
        }
    }

    /// Those that open all parts of a bundle.
    public static func able(_ bundle: ModelBundle) -> [EngineChoice] {
        let formats = Set(bundle.manifest.parts.map(\.format))
        return allCases.filter { formats.isSubset(of: $0.engine.formats) }
    }

    /// The system may empty it: packages are then compiled anew.
    private static var cache: URL {
        let folders = FileManager.default.urls(for: .cachesDirectory, in: .userDomainMask)
        return (folders.first ?? FileManager.default.temporaryDirectory).appendingPathComponent("compiled")
    }
}
