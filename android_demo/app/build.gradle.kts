import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "dev.edgevlm.demo"
    compileSdk = 36

    defaultConfig {
        applicationId = "dev.edgevlm.demo"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.2.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }

    // A bundle of your own: edge export CHECKPOINT -o android_demo/app/src/main/assets/demo
    androidResources { noCompress += listOf("data", "npy") }
}

kotlin {
    compilerOptions { jvmTarget.set(JvmTarget.JVM_1_8) }
}

dependencies {
    implementation(project(":core"))
    // The last one without telemetry: from 1.29 on its manifest adds a provider and the network's permissions.
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.26.0")
}
