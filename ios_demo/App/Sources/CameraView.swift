// Screen: the camera, and one question about what it sees now, again and again.
import AppModel
import SwiftUI
import VLMCore

struct CameraView: View {
    let model: DemoModel
    @State private var camera = Camera()
    @State private var question = "What is in the picture?"
    @State private var problem: String?
    @Environment(\.dismiss) private var dismiss

    var body: some View {
        VStack {
            PictureView(picture: model.picture)
            Text(problem ?? model.answer)
            Text(model.timings).font(.caption).foregroundStyle(.secondary)
            TextField("Question", text: $question).textFieldStyle(.roundedBorder)
            Button("Take this photo") { take() }
        }
        .padding()
        .navigationTitle("Camera")
        .task(id: question) { await model.watch(camera.frames, question) }
        .task { await start() }
        .onDisappear { camera.stop() }
    }

    private func start() async {
        do {
            try await camera.start()
        } catch {
            problem = (error as? EdgeError)?.sentence ?? error.localizedDescription
        }
    }

    private func take() {
        camera.stop()
        if let picture = model.picture { model.look(at: picture) }
        dismiss()
    }
}
