use std::collections::BTreeSet;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Gradients, Tensor};
use tpo_core::weights::PathStack;

use super::*;
use crate::error::GroupProblem;

#[derive(Module, Debug)]
enum Activation {
    Slope(Slope),
    #[allow(dead_code)]
    Other(Linear),
}

#[derive(Module, Debug)]
struct Slope {
    alpha: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct Tower {
    layers: Vec<Linear>,
    norm: LayerNorm,
}

#[derive(Module, Debug)]
struct Tiny {
    tower: Tower,
    act: Activation,
    head: Linear,
    tokens: Vec<Param<Tensor<3>>>,
}

impl Tiny {
    /// tower 2 · (3·3 + 3) + 3 + 3 = 30, act 1, head 3·2 + 2 = 8, tokens 2 · 3 = 6.
    fn new(device: &Device) -> Self {
        let token = || Param::from_tensor(Tensor::ones([1, 1, 3], device));
        Self {
            tower: Tower {
                layers: (0..2)
                    .map(|_| LinearConfig::new(3, 3).init(device))
                    .collect(),
                norm: LayerNormConfig::new(3).init(device),
            },
            act: Activation::Slope(Slope {
                alpha: Param::from_tensor(Tensor::full([1], 0.25, device)),
            }),
            head: LinearConfig::new(3, 2).init(device),
            tokens: vec![token(), token()],
        }
    }

    /// Uses every parameter.
    fn loss(&self, x: Tensor<2>) -> Tensor<1> {
        let mut x = x;
        for token in &self.tokens {
            x = x + token.val().reshape([1, 3]);
        }
        for layer in &self.tower.layers {
            x = layer.forward(x);
        }
        x = self.tower.norm.forward(x);
        let x = match &self.act {
            Activation::Slope(slope) => x * slope.alpha.val().reshape([1, 1]),
            Activation::Other(linear) => linear.forward(x),
        };
        self.head.forward(x).powi_scalar(2).sum()
    }
}

const ALL: [&str; 11] = [
    "act.alpha",
    "head.bias",
    "head.weight",
    "tokens.0",
    "tokens.1",
    "tower.layers.0.bias",
    "tower.layers.0.weight",
    "tower.layers.1.bias",
    "tower.layers.1.weight",
    "tower.norm.beta",
    "tower.norm.gamma",
];

/// Paths of the parameters with a gradient.
fn with_gradient(module: &Tiny, gradients: &Gradients) -> BTreeSet<String> {
    struct Finder<'a> {
        stack: PathStack,
        gradients: &'a Gradients,
        found: BTreeSet<String>,
    }
    impl ModuleVisitor for Finder<'_> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.stack.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, container_type: &str) {
            self.stack.exit(container_type);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.val().grad(self.gradients).is_some() {
                self.found.insert(self.stack.path());
            }
        }
    }
    let mut finder = Finder {
        stack: PathStack::default(),
        gradients,
        found: BTreeSet::new(),
    };
    module.visit(&mut finder);
    finder.found
}

fn gradients_of(module: &Tiny, device: &Device) -> BTreeSet<String> {
    let x = Tensor::from_data([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]], device);
    with_gradient(module, &module.loss(x).backward())
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|p| p.to_string()).collect()
}

fn problems(module: &impl Module, specs: &[ParamGroupSpec]) -> Vec<GroupProblem> {
    match resolve(module, specs) {
        Err(TrainError::Groups { problems }) => problems,
        other => panic!("expected problems, found {other:?}"),
    }
}

#[test]
fn gradients_exist_exactly_for_the_groups() {
    let device = Device::flex().autodiff();
    let tiny = Tiny::new(&device);
    assert_eq!(gradients_of(&tiny, &device), set(&ALL));

    let specs = [
        ParamGroupSpec::new("tower", ["tower.**", "!tower.layers.0.*"], 1e-4),
        ParamGroupSpec::new("token", ["tokens.1"], 2e-4),
    ];
    let groups = resolve(&tiny, &specs).unwrap();
    let tiny = freeze(tiny, &groups).unwrap();
    let expected = set(&[
        "tokens.1",
        "tower.layers.1.bias",
        "tower.layers.1.weight",
        "tower.norm.beta",
        "tower.norm.gamma",
    ]);
    assert_eq!(gradients_of(&tiny, &device), expected);

    // Another stage: what was frozen learns again, what learnt is frozen.
    let specs = [ParamGroupSpec::new("rest", ["act.**", "head.weight"], 1e-4)];
    let groups = resolve(&tiny, &specs).unwrap();
    let tiny = freeze(tiny, &groups).unwrap();
    assert_eq!(
        gradients_of(&tiny, &device),
        set(&["act.alpha", "head.weight"])
    );
}

#[test]
fn every_parameter_is_in_one_group_or_frozen() {
    let tiny = Tiny::new(&Device::flex());
    let specs = [
        ParamGroupSpec::new("tower", ["tower.**"], 1e-4),
        ParamGroupSpec::new("tokens", ["tokens.*", "act.alpha"], 2e-4),
    ];
    let groups = resolve(&tiny, &specs).unwrap();
    let counts: Vec<_> = groups
        .groups
        .iter()
        .map(|g| (g.num_tensors(), g.num_parameters()))
        .collect();
    assert_eq!(counts, [(6, 30), (3, 7)]);
    assert_eq!((groups.num_trainable(), groups.num_frozen()), (37, 8));
    assert_eq!(
        groups.num_trainable() + groups.num_frozen(),
        tiny.num_params()
    );
    assert_eq!(groups.group_of("tokens.1").unwrap().name, "tokens");
    assert!(groups.group_of("head.weight").is_none());
    let paths: BTreeSet<String> = groups
        .trainable()
        .chain(&groups.frozen)
        .map(|p| p.path.clone())
        .collect();
    assert_eq!(paths, set(&ALL));
}

#[test]
fn biases_norms_and_slopes_do_not_decay() {
    let tiny = Tiny::new(&Device::flex());
    let groups = resolve(&tiny, &[ParamGroupSpec::new("all", ["**"], 1e-4)]).unwrap();
    let all = &groups.groups[0];
    let decaying: BTreeSet<String> = all
        .params
        .iter()
        .filter(|p| p.decays())
        .map(|p| p.path.clone())
        .collect();
    let expected = [
        "head.weight",
        "tokens.0",
        "tokens.1",
        "tower.layers.0.weight",
        "tower.layers.1.weight",
    ];
    assert_eq!(decaying, set(&expected));
    // A matrix may be called bias, as a relative position bias is.
    let matrix = ResolvedParam {
        path: "attn.bias".into(),
        id: ParamId::new(),
        shape: vec![4, 4],
        tied: Vec::new(),
    };
    assert!(!matrix.decays());
}

#[test]
fn nothing_is_initialised() {
    let device = Device::flex().autodiff();
    let linear = LinearConfig::new(3, 2).init(&device);
    assert!(!linear.weight.is_initialized());
    let groups = resolve(&linear, &[ParamGroupSpec::new("bias", ["bias"], 1e-4)]).unwrap();
    let linear = freeze(linear, &groups).unwrap();
    assert!(!linear.weight.is_initialized());
    let bias = linear.bias.as_ref().unwrap();
    assert!(!bias.is_initialized());
    // Once they are, they follow.
    assert!(!linear.weight.val().is_require_grad());
    assert!(bias.val().is_require_grad());
}

#[test]
fn every_problem_is_reported_at_once() {
    let tiny = Tiny::new(&Device::flex());
    let specs = [
        ParamGroupSpec::new("a", ["tower.**", "towr.**", "tower(.*)"], 1e-4),
        ParamGroupSpec::new("b", ["**.norm.*", "!head.**"], 1e-4),
        ParamGroupSpec::new("b", ["head.*", "!head.**"], 1e-4),
    ];
    let found = problems(&tiny, &specs);
    assert_eq!(found.len(), 6, "{found:#?}");
    assert!(matches!(&found[0],
        GroupProblem::InvalidPattern { group, pattern, .. }
        if group == "a" && pattern == "tower(.*)"));
    assert!(matches!(&found[1],
        GroupProblem::Unmatched { pattern, nearest, .. }
        if pattern == "towr.**" && nearest[0] == "tower.**"));
    assert!(matches!(&found[2],
        GroupProblem::UselessExclusion { group, pattern }
        if group == "b" && pattern == "!head.**"));
    assert!(matches!(&found[3], GroupProblem::DuplicateName { group } if group == "b"));
    assert!(matches!(&found[4], GroupProblem::Empty { group } if group == "b"));
    assert!(matches!(&found[5],
        GroupProblem::Overlap { first, second, paths }
        if first == "a" && second == "b" && paths.len() == 2));
    let text = TrainError::Groups { problems: found }.to_string();
    assert!(
        text.contains(
            "groups `a` and `b` both match 2 parameters: tower.norm.gamma, tower.norm.beta"
        ),
        "{text}"
    );
    assert!(text.contains("pattern `towr.**`: matches no parameter; would match: tower.**"));
    // Adapters are not misspelt but absent.
    let adapters = [ParamGroupSpec::new("a", ["tower.**.lora.*"], 1e-4)];
    let text = problems(&tiny, &adapters)[0].to_string();
    assert!(
        text.contains("give it some: model.lora = { rank = "),
        "{text}"
    );
}

#[test]
fn tied_parameters_count_once_and_must_agree() {
    let device = Device::flex().autodiff();
    let first = LinearConfig::new(3, 3).init(&device);
    let tied = (first.clone(), first);
    let specs = [ParamGroupSpec::new("w", ["*.weight"], 1e-4)];
    let groups = resolve(&tied, &specs).unwrap();
    assert_eq!(groups.num_trainable(), 9);
    assert_eq!(groups.groups[0].params[0].tied, ["1.weight"]);
    assert_eq!(groups.group_of("1.weight").unwrap().name, "w");
    let tied = freeze(tied, &groups).unwrap();
    assert!(tied.0.weight.val().is_require_grad() && tied.1.weight.val().is_require_grad());

    let found = problems(&tied, &[ParamGroupSpec::new("w", ["0.weight"], 1e-4)]);
    assert_eq!(
        found[0].to_string(),
        "`0.weight` (w) and `1.weight` (frozen) are one parameter; match both or neither"
    );
}

#[test]
fn groups_of_another_module_are_refused() {
    let device = Device::flex().autodiff();
    let specs = [ParamGroupSpec::new("w", ["weight"], 1e-4)];
    let groups = resolve(&LinearConfig::new(3, 2).init(&device), &specs).unwrap();
    // Same structure, other identities: fine.
    let other = freeze(LinearConfig::new(3, 2).init(&device), &groups).unwrap();
    assert!(other.weight.val().is_require_grad());
    assert!(!other.bias.as_ref().unwrap().val().is_require_grad());
    let narrow = LinearConfig::new(3, 2).with_bias(false).init(&device);
    match freeze(narrow, &groups) {
        Err(TrainError::OtherModule {
            missing,
            unexpected,
        }) => assert!(missing == ["bias"] && unexpected.is_empty()),
        other => panic!("{other:?}"),
    }
    let wide = LinearConfig::new(4, 2).init(&device);
    let text = freeze(wide, &groups).unwrap_err().to_string();
    assert!(text.contains("Only in the groups (1): weight"), "{text}");
}

#[test]
fn table() {
    let tiny = Tiny::new(&Device::flex());
    let mut head = ParamGroupSpec::new("head", ["head.*"], 1e-4);
    head.weight_decay = Some(0.02);
    let specs = [head, ParamGroupSpec::new("tokens", ["tokens.*"], 2e-5)];
    let expected = "\
group     tensors  parameters  learning rate  weight decay  no decay
head            2           8           1e-4          0.02         1
tokens          2           6           2e-5             -         0
(frozen)        7          31              -             -         -";
    assert_eq!(resolve(&tiny, &specs).unwrap().to_string(), expected);
}
