// Engine for `coreml` parts: Core ML, on the processor, the graphics processor or the neural engine.
#if canImport(CoreML)
    import CoreML
    import Foundation

    public struct CoreMLEngine: Engine {
        public let units: ComputeUnits
        private let cache: URL

        public var name: String { units == .all ? "coreml" : "coreml+\(units.rawValue)" }
        public let formats: Set<String> = ["coreml"]

        /// `cache`: a folder for what Core ML makes of packages for this device.
        public init(_ units: ComputeUnits, cache: URL) { (self.units, self.cache) = (units, cache) }

        public func predicted(_ bundle: ModelBundle, _ settings: Settings) -> Int {
            let decoder = bundle.manifest.decoder
            let sizes = [2, decoder.layers, decoder.kvHeads, decoder.headDim, decoder.context]
            let weights = bundle.manifest.parts.flatMap(\.files).reduce(0) { $0 + $1.bytes }
            return Numbers.bytes(sizes, width: 2).map { weights + $0 } ?? .max
        }

        public func prepare(_ bundle: ModelBundle) async throws {
            for part in bundle.manifest.parts {
                let plan = try plan(part, of: bundle)
                let place = compiled(plan)
                if FileManager.default.fileExists(atPath: place.path) { continue }
                do {
                    try FileManager.default.createDirectory(at: cache, withIntermediateDirectories: true)
                    let made = try await MLModel.compileModel(at: bundle.folder.appendingPathComponent(plan.package))
                    try? FileManager.default.removeItem(at: place)
                    try FileManager.default.moveItem(at: made, to: place)
                } catch {
                    throw failed("cannot compile \(plan.package)", error)
                }
            }
        }

        public func open(_ bundle: ModelBundle, _ settings: Settings) throws -> any Model {
            try CoreMLModel(bundle, settings, self)
        }

        fileprivate func plan(_ part: Part, of bundle: ModelBundle) throws -> CoreMLPlan {
            #if os(macOS)
                let name = "macos"
            #else
                let name = "ios"
            #endif
            let own = ProcessInfo.processInfo.operatingSystemVersion
            let version = "\(own.majorVersion).\(own.minorVersion).\(own.patchVersion)"
            return try CoreMLPlan(part, spec: bundle.manifest.decoder, system: (name, version))
        }

        /// A function of a package that was prepared. Throws EdgeError.
        fileprivate func load(_ plan: CoreMLPlan, _ function: String) throws -> MLModel {
            let configuration = MLModelConfiguration()
            configuration.functionName = function
            configuration.computeUnits =
                switch units {
                case .all: .all
                case .cpu: .cpuOnly
                case .gpu: .cpuAndGPU
                case .ane: .cpuAndNeuralEngine
                }
            do {
                return try MLModel(contentsOf: compiled(plan), configuration: configuration)
            } catch {
                throw failed("cannot open \(function) of \(plan.package)", error)
            }
        }

        /// What was compiled for an older system may be refused by a newer one.
        private func compiled(_ plan: CoreMLPlan) -> URL {
            let system = ProcessInfo.processInfo.operatingSystemVersionString.filter { $0.isLetter || $0.isNumber }
            return cache.appendingPathComponent("\(plan.key)-\(system).mlmodelc")
        }
    }

    private func failed(_ what: String, _ error: any Error) -> EdgeError {
        .engine("Core ML \(what): \(error.localizedDescription)", hint: "other compute units, or another engine")
    }

    private final class CoreMLModel: Model {
        private let bundle: ModelBundle
        private let engine: CoreMLEngine
        private let table: EmbeddingTable
        private var decoder: StatefulDecoder
        private var vision: [(model: MLModel, input: String, output: String)] = []

        init(_ bundle: ModelBundle, _ settings: Settings, _ engine: CoreMLEngine) throws {
            let part = try bundle.manifest.part("decoder")
            let spec = bundle.manifest.decoder
            let plan = try engine.plan(part, of: bundle)
            (self.bundle, self.engine) = (bundle, engine)
            table = try EmbeddingTable(part.files.map(bundle.file), vocab: spec.vocab, hidden: spec.hidden)
            let functions = try CoreMLFunctions(plan, spec, engine)
            let held = min(plan.held ?? spec.context, spec.context)
            let context = settings.context > 0 ? min(settings.context, held) : held
            decoder = StatefulDecoder(functions, spec, context: context, masked: plan.masked)
            try warmUp(spec)
        }

        var context: Int { decoder.context }
        var position: Int { decoder.position }

        func see(_ pixels: [Float], _ stop: Stop) throws -> [Float] {
            if vision.isEmpty {
                vision = try bundle.manifest.parts.filter { !$0.covers.contains("decoder") }.map { part in
                    let model = try engine.load(engine.plan(part, of: bundle), "encode")
                    return (model, part.inputs.first?.name ?? "", part.outputs.first?.name ?? "")
                }
            }
            if vision.isEmpty { throw EdgeError.engine("the bundle has no vision part", hint: "ask without a photo") }
            let size = bundle.manifest.image.size
            var values = MLShapedArray<Float>(scalars: pixels, shape: [1, 3, size, size])
            for (model, input, output) in vision {
                try stop.check()
                values = try predicted(output) {
                    try model.prediction(from: MLDictionaryFeatureProvider(dictionary: [input: MLMultiArray(values)]))
                }
            }
            let expected = bundle.manifest.prompt.imageTokens * bundle.manifest.decoder.hidden
            if values.scalars.count != expected {
                throw EdgeError.engine("the vision part gave \(values.scalars.count) numbers, not \(expected)")
            }
            return values.scalars
        }

        func gather(_ ids: [Int], into rows: inout [Float]) throws { try table.gather(ids, into: &rows) }
        func extend(_ rows: [Float], _ stop: Stop) throws -> [Float] { try decoder.extend(rows, stop) }
        func rewind(_ position: Int) throws { try decoder.rewind(position) }
        func freeVision() { vision = [] }

        /// The first run of a function takes far longer than the others: not the first answer shall.
        private func warmUp(_ spec: DecoderSpec) throws {
            for count in [2, 1] where count <= decoder.context {
                _ = try decoder.extend([Float](repeating: 0, count: count * spec.hidden), Stop())
                try decoder.rewind(0)
            }
        }
    }

    /// The functions of a decoder's package, which share one state.
    private final class CoreMLFunctions: StatefulFunctions {
        private let models: [String: MLModel]
        private let state: MLState
        private let hidden: Int

        init(_ plan: CoreMLPlan, _ spec: DecoderSpec, _ engine: CoreMLEngine) throws {
            let prefill = try engine.load(plan, StatefulDecoder.prefill)
            models = [
                StatefulDecoder.prefill: prefill,
                StatefulDecoder.decode: try engine.load(plan, StatefulDecoder.decode),
            ]
            state = prefill.makeState()
            hidden = spec.hidden
        }

        func run(_ function: String, rows: [Float], mask: [Float], new: Int, total: Int) throws -> [Float] {
            guard let model = models[function] else { throw EdgeError.engine("there is no function \(function)") }
            let rows = MLShapedArray<Float>(scalars: rows, shape: [1, new, hidden])
            let mask = MLShapedArray<Float>(scalars: mask, shape: [1, 1, new, total])
            return try predicted("logits") {
                let feeds = ["inputs_embeds": MLMultiArray(rows), "causal_mask": MLMultiArray(mask)]
                return try model.prediction(from: MLDictionaryFeatureProvider(dictionary: feeds), using: state)
            }.scalars
        }
    }

    /// A float32 output of a run, whatever strides and type it was made with. Throws EdgeError.
    private func predicted(_ name: String, _ run: () throws -> any MLFeatureProvider) throws -> MLShapedArray<Float> {
        let found: any MLFeatureProvider
        do {
            found = try run()
        } catch {
            throw failed("failed", error)
        }
        guard let array = found.featureValue(for: name)?.multiArrayValue else {
            throw EdgeError.engine("Core ML gave no \(name)")
        }
        return MLShapedArray<Float>(converting: array)
    }
#endif
