// swift-tools-version:6.0
// The run side as a package: VLMCore for an app, and vlm, which answers on a command line.
import PackageDescription

// Linux: swift build -Xcc -IHEADERS -Xlinker -LLIBRARY, as ./in-root and ./test-core do.
#if os(Linux)
    let framework: [Target] = []
    let needed: [Target.Dependency] = []
    let linked: [LinkerSetting] = [.linkedLibrary("onnxruntime")]
#else
    let framework: [Target] = [.binaryTarget(name: "onnxruntime", path: "Frameworks/onnxruntime.xcframework")]
    let needed: [Target.Dependency] = ["onnxruntime"]
    let linked: [LinkerSetting] = [.linkedLibrary("c++"), .linkedFramework("CoreML"), .linkedFramework("Foundation")]
#endif

let package = Package(
    name: "VLMCore",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "VLMCore", targets: ["VLMCore"]),
        .executable(name: "vlm", targets: ["vlm"]),
    ],
    targets: framework + [
        .target(name: "COrt", dependencies: needed, linkerSettings: linked),
        .target(name: "VLMCore", dependencies: ["COrt"]),
        .executableTarget(name: "vlm", dependencies: ["VLMCore"]),
        .testTarget(name: "VLMCoreTests", dependencies: ["VLMCore"]),
    ]
)
