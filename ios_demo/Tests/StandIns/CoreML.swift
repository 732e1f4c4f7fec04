// Stand-in for Core ML: the declarations that this package uses, to type-check against. Nothing of it computes.
import Foundation

public enum MLComputeUnits: Int { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

public enum MLMultiArrayDataType: Int { case float32, float16, double, int32 }

open class MLModelConfiguration: NSObject {
    open var computeUnits: MLComputeUnits = .all
    open var functionName: String?
}

public final class MLState {}

open class MLMultiArray: NSObject {
    public convenience init<Scalar: MLShapedArrayScalar>(_ shapedArray: MLShapedArray<Scalar>) { fatalError() }
}

public protocol MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}

public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
    public init(scalars: some Sequence<Scalar>, shape: [Int]) { fatalError() }
    public init(converting multiArray: MLMultiArray) { fatalError() }
    public var scalars: [Scalar] { fatalError() }
}

public final class MLFeatureValue: NSObject {
    public var multiArrayValue: MLMultiArray? { fatalError() }
}

public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
    public init(dictionary: [String: Any]) throws { fatalError() }
    public var featureNames: Set<String> { fatalError() }
    public func featureValue(for featureName: String) -> MLFeatureValue? { fatalError() }
}

open class MLModel: NSObject {
    public convenience init(contentsOf url: URL, configuration: MLModelConfiguration) throws { fatalError() }
    public class func compileModel(at modelURL: URL) async throws -> URL { fatalError() }
    open func makeState() -> MLState { fatalError() }
    open func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider { fatalError() }
    open func prediction(from input: any MLFeatureProvider, using state: MLState) throws -> any MLFeatureProvider {
        fatalError()
    }
}
