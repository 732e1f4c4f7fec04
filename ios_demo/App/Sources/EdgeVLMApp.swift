// The app: one window.
import SwiftUI

@main
struct EdgeVLMApp: App {
    @State private var model = DemoModel()

    var body: some Scene {
        WindowGroup {
            AskView(model: model)
        }
    }
}
