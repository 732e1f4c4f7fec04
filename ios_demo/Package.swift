// swift-tools-version:6.0
// The run side as a package: VLMCore for any app, AppModel of this one, and vlm, which answers on a command line.
import PackageDescription

// Linux and macOS take the library and its headers from folders that the command names: see README.md.
#if os(Linux)
    let framework: [Target] = []
    let needed: [Target.Dependency] = []
#else
    let framework: [Target] = [.binaryTarget(name: "onnxruntime", path: "Frameworks/onnxruntime.xcframework")]
    let needed: [Target.Dependency] = [.target(name: "onnxruntime", condition: .when(platforms: [.iOS, .macCatalyst]))]
#endif
let linked: [LinkerSetting] = [
    .linkedLibrary("onnxruntime", .when(platforms: [.linux, .macOS])),
    .linkedLibrary("c++", .when(platforms: [.iOS, .macCatalyst])),
    .linkedFramework("CoreML", .when(platforms: [.iOS, .macCatalyst])),
    .linkedFramework("Foundation", .when(platforms: [.iOS, .macCatalyst])),
]

let package = Package(
    name: "VLMCore",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "VLMCore", targets: ["VLMCore"]),
        .library(name: "AppModel", targets: ["AppModel"]),
        .executable(name: "vlm", targets: ["vlm"]),
    ],
    targets: framework + [
        .target(name: "COrt", dependencies: needed, linkerSettings: linked),
        .target(name: "CMachine"),
        .target(name: "VLMCore", dependencies: ["COrt", "CMachine"]),
        .target(name: "AppModel", dependencies: ["VLMCore"]),
        .executableTarget(name: "vlm", dependencies: ["VLMCore"]),
        .testTarget(name: "VLMCoreTests", dependencies: ["VLMCore"]),
        .testTarget(name: "AppModelTests", dependencies: ["AppModel"]),
    ]
)
